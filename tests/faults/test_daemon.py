"""A daemon that is killed, started twice, or whose state directory fails."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.attacks.callers import wait_for_worker
from tests.support.filesystems import EXT4, disk_image
from tests.support.filesystems import tmpfs as make_tmpfs
from tests.support.poll import until
from tests.support.processes import child_called
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

MIB = 1 << 20


def ktaskfs(*arguments: str) -> Outcome:
    return run(sys.executable, "-m", "ktaskfs.cli.main", *arguments, cwd=Path(__file__).parents[2])


def start(mount: Mount, name: str, file: Path, size: str = "64M", rate: str = "64K") -> None:
    spec = f"fallocate path={file} length={size} rate_max={rate} chunk=1M name={name}"
    assert mount.write("tasks/control", spec) == (0, None), mount.read("info/last_cmd_status")


def finish(mount: Mount, task: str, state: str = "done") -> None:
    mount.write(f"tasks/{task}/rate_max", "max")
    assert mount.read(f"tasks/{task}/wait").splitlines()[-1] == state, mount.read(f"tasks/{task}/error")


@pytest.fixture
def small(area: Path) -> Iterator[Path]:
    """A state directory on a separate filesystem, which a test can fill, or make read-only."""
    with make_tmpfs(area / "small", MIB, "mode=0700") as path:
        yield path


def test_a_second_daemon_on_one_state_directory(mounted: Mount, area: Path) -> None:
    other = area / "other"
    other.mkdir()
    outcome = ktaskfs("mount", "-o", f"statedir={mounted.statedir}", str(other))
    assert outcome.status == 1
    assert outcome.err == f"ktaskfs: another ktaskfs is using the state directory {mounted.statedir}\n"
    assert mounted.read("version")


@pytest.mark.usefixtures("patient")
def test_a_stale_mount_point_is_cleared(mounted: Mount, area: Path, tmpfs: Path) -> None:
    start(mounted, "t", tmpfs / "f")
    mounted.process.send_signal(signal.SIGKILL)
    mounted.process.wait()
    assert run("ls", str(mounted.path)).errname == "ENOTCONN"
    outcome = ktaskfs("mount", "-o", f"statedir={mounted.statedir}", str(mounted.path))
    assert outcome.status == 0, outcome.err
    try:
        assert mounted.read("tasks/t/state") == "running\n"
        finish(mounted, "t")
    finally:
        until(lambda: run("umount", str(mounted.path)).status == 0, "what looked at the mount has ended")
    mounted.kill()
    until(lambda: ktaskfs("mount", "-o", f"statedir={mounted.statedir}", "/nowhere").status == 1, "it ends")


def test_mounting_where_nothing_can_be_mounted(area: Path) -> None:
    file = area / "file"
    file.write_text("")
    for point, words in ((area / "missing", "No such file"), (file, "Not a directory")):
        outcome = ktaskfs("mount", "-o", f"statedir={area / 'state'}", str(point))
        assert outcome.status == 1
        assert outcome.err.startswith("ktaskfs: ")
        assert words in outcome.err
        assert len(outcome.err.splitlines()) == 1
        assert not (area / "state").exists()
    outcome = ktaskfs("mount", "-o", "frobnicate", str(area))
    assert outcome.err == "ktaskfs: option 'frobnicate': unknown option\n"


@pytest.mark.usefixtures("patient")
def test_a_state_directory_that_fills_up(small: Path, mount_maker: MountMaker, tmpfs: Path) -> None:
    mount = mount_maker(statedir=small)
    start(mount, "before", tmpfs / "f")
    run("dd", "if=/dev/zero", f"of={small}/filler", "bs=4096")
    assert mount.write("tasks/control", f"fallocate path={tmpfs}/g length=1M name=no") == (1, "ENOSPC")
    assert not (tmpfs / "g").exists()
    assert not (mount.path / "tasks" / "no").exists()
    finish(mount, "before")
    assert mount.read("tasks/before/progress") == f"{64 * MIB} / {64 * MIB}\n"
    (small / "filler").unlink()
    start(mount, "after", tmpfs / "h", "1M")
    finish(mount, "after")


@pytest.mark.usefixtures("patient")
def test_an_outcome_that_could_not_be_recorded_is_found_in_the_page(
    small: Path, mount_maker: MountMaker, tmpfs: Path
) -> None:
    first = mount_maker(statedir=small)
    start(first, "t", tmpfs / "f")
    run("dd", "if=/dev/zero", f"of={small}/filler", "bs=4096")
    finish(first, "t")
    assert "write the record of task t: No space left on device" in first.log.read_text()
    first.kill()
    (small / "filler").unlink()
    second = mount_maker(statedir=small)
    assert second.read("tasks/t/state") == "done\n"
    assert second.read("tasks/t/progress") == f"{64 * MIB} / {64 * MIB}\n"
    assert not list(small.glob("*.page"))


def test_a_state_directory_that_is_read_only(small: Path, area: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    point = area / "point"
    point.mkdir()
    outcome = ktaskfs("mount", "-o", f"statedir={small}", str(point))
    assert outcome.status == 1
    assert outcome.err == f"ktaskfs: state directory {small}: Read-only file system\n"


@pytest.fixture
def frail(root: None, area: Path) -> Iterator[Path]:
    """A state directory on an ext4 that becomes read-only after an error of its disk."""
    with disk_image(area, *EXT4, "-e", "remount-ro") as path:
        (path / "state").mkdir(mode=0o700)
        yield path / "state"


def test_a_state_directory_that_becomes_read_only(frail: Path, mount_maker: MountMaker, tmpfs: Path) -> None:
    """Nothing starts. A task goes on with its old values, and can be killed."""
    mount = mount_maker(statedir=frail)
    start(mount, "t", tmpfs / "f", rate="1")
    until(lambda: not mount.read("tasks/t/progress").startswith("0 "), "the first chunk")
    number = os.stat(frail).st_dev
    disk = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name
    Path(f"/sys/fs/ext4/{disk}/trigger_fs_error").write_text("1")
    no_start = mount.write("tasks/control", f"fallocate path={tmpfs}/g length=1M name=no")
    values = {"rate_max": "2", "nice": "7"}
    before = [mount.read(f"tasks/t/{name}") for name in values]
    changes = [mount.write(f"tasks/t/{name}", value) for name, value in values.items()]
    after = [mount.read(f"tasks/t/{name}") for name in values]
    assert mount.write("tasks/t/control", "kill") == (0, None)  # before any check, because nothing else ends it
    assert mount.read("tasks/t/wait").splitlines()[-1] == "interrupted"
    assert [no_start, *changes] == [(1, "EROFS")] * 3
    assert after == before
    assert not (tmpfs / "g").exists()


@pytest.mark.usefixtures("patient")
def test_no_more_descriptors(mount_maker: MountMaker, tmpfs: Path) -> None:
    mount = mount_maker()
    start(mount, "t", tmpfs / "f")
    limits = resource.prlimit(mount.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(mount.pid, resource.RLIMIT_NOFILE, (3, limits[1]))  # whatever it has just closed
    status, errname = mount.write("tasks/control", f"fallocate path={tmpfs}/g length=1M name=no")
    assert status == 1
    assert errname == "EMFILE"
    assert mount.read("tasks/t/state") == "running\n"
    resource.prlimit(mount.pid, resource.RLIMIT_NOFILE, limits)
    start(mount, "next", tmpfs / "h", "1M")
    finish(mount, "next")
    finish(mount, "t")


def test_records_of_the_dead_and_of_nobody(mount_maker: MountMaker, area: Path, tmpfs: Path) -> None:
    state = area / "kept"
    first = mount_maker(statedir=state)
    start(first, "good", tmpfs / "f", "1M")
    finish(first, "good")
    first.close()
    (state / "00000077.json").write_text("{")
    (state / "00000078.json").write_bytes(os.urandom(300))
    (state / "00000079.json").write_text('{"version": 99}')
    (state / "00000080.page").write_bytes(b"x" * 4096)
    (state / "nonsense").write_text("")
    second = mount_maker(statedir=state)
    assert second.read("tasks/good/state") == "done\n"
    assert run("ls", str(second.path / "tasks")).out.split() == ["control", "good"]
    assert sorted(path.name for path in state.glob("*.bad")) == [f"000000{n}.json.bad" for n in (77, 78, 79)]
    log = second.log.read_text()
    assert all(f"000000{n}.json" in log for n in (77, 78, 79))
    start(second, "next", tmpfs / "g", "1M")
    finish(second, "next")


def test_a_pid_that_is_anothers_by_now(mount_maker: MountMaker, area: Path, tmpfs: Path) -> None:
    """A record whose pid lives but has another start time: the task is dead, and that process is not touched."""
    state = area / "kept"
    first = mount_maker(statedir=state)
    start(first, "t", tmpfs / "f")
    pid = wait_for_worker(first, "t")
    first.kill()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}/root").exists(), "the worker is dead")
    with subprocess.Popen(["sleep", "1000"]) as bystander:
        record = next(state.glob("*.json"))
        record.write_text(record.read_text().replace(f'"pid": {pid}', f'"pid": {bystander.pid}'))
        second = mount_maker(statedir=state)
        assert second.read("tasks/t/state") == "interrupted\n"
        assert second.write("tasks/t/control", "kill") == (1, "EBUSY")
        assert bystander.poll() is None
        bystander.kill()
    assert second.write("tasks/t/control", "resume") == (0, None)
    finish(second, "t")


def test_a_caller_that_dies_during_its_write(mounted: Mount, tmpfs: Path) -> None:
    """With the spawner stopped, the write waits. Its caller is killed meanwhile; the mount and the task are intact."""
    spawner = child_called(mounted.pid, "ktaskfs: spawner")
    spawner.suspend()
    command = ["bash", "-c", 'echo "fallocate path=$1 length=1M name=t" > "$0"', str(mounted.path / "tasks/control")]
    with subprocess.Popen([*command, str(tmpfs / "f")]) as caller:
        until(lambda: (mounted.path / "tasks" / "t").exists(), "the write has arrived")
        caller.kill()
        caller.wait()
    spawner.resume()
    finish(mounted, "t")
    assert mounted.read("tasks/t/progress") == f"{MIB} / {MIB}\n"


def test_what_ends_during_the_start_of_a_daemon_has_its_own_lines_in_the_log(
    mount_maker: MountMaker, area: Path, tmpfs: Path
) -> None:
    """The session captures standard error at that time, for the errors of libfuse; the log is not in it."""
    first = mount_maker(statedir=area / "kept")
    spawner = child_called(first.pid, "ktaskfs: spawner")
    spawner.suspend()
    for name in ("a", "b"):
        start(first, name, tmpfs / name)  # answered after a second, without a worker
    first.kill()
    spawner.kill()
    second = mount_maker(statedir=area / "kept")
    words = "interrupted in 0.0s: the daemon ended before the work began"
    ends = [line for line in second.log.read_text().splitlines() if words in line]
    lines = [re.fullmatch(r"\S+ \S+ WARNING task (\w): \w+ \S+ (.*)", line) for line in ends]
    assert sorted((line[1], line[2]) for line in lines if line is not None) == [("a", words), ("b", words)], ends


def test_at_a_limit_on_processes_it_refuses_what_needs_a_thread(mount_maker: MountMaker, two_users: list[User]) -> None:
    user = two_users[0]
    mount = mount_maker(user=user)

    def limit(*nproc: str) -> str:
        outcome = run("prlimit", f"--pid={mount.pid}", *nproc, user=user)
        assert outcome.status == 0, outcome.err
        return outcome.out.strip()

    before = limit("--nproc", "--output=SOFT", "--noheadings")
    limit("--nproc=1:")
    for file in ("metrics", "info/holders"):
        assert mount.cat(file, user=user).errname == "EAGAIN"
    assert mount.write("tasks/control", "cancel", user=user) == (1, "EAGAIN")
    assert "cannot start a thread: pids.max" in mount.read("info/last_cmd_status", user=user)
    limit(f"--nproc={before}:")
    assert mount.write("tasks/control", "cancel", user=user) == (0, None)
    assert "ktaskfs_tasks" in mount.read("metrics", user=user)
