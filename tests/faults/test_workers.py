"""Workers that are killed, stopped or starved: what the daemon reports of them, and what continues."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from ktaskfs.span import Span
from tests.support.cgroups import count_huge_pages, removed
from tests.support.daemon import ROOT, interpreter
from tests.support.filesystems import hugetlbfs
from tests.support.filesystems import tmpfs as make_tmpfs
from tests.support.hugepages import reserved
from tests.support.memory_files import HUGE, allocated
from tests.support.poll import DEADLINE, until
from tests.support.processes import child_called, halt
from tests.support.shell import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

MIB = 1 << 20


def start(mount: Mount, spec: str, user: User | None = None) -> int:
    """Start the task ``t``; returns the pid of its worker."""
    assert mount.write("tasks/control", f"{spec} name=t", user=user) == (0, None), mount.read("info/last_cmd_status")
    until(lambda: stat(mount, "t")["state"] != "starting", "the task begins")  # before, its pid is 0: all of our group
    return int(stat(mount, "t")["pid"])


def stat(mount: Mount, task: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in mount.read(f"tasks/{task}/stat").splitlines())


def finish(mount: Mount, task: str, state: str) -> None:
    assert mount.read(f"tasks/{task}/wait").splitlines()[-1] == state, mount.read(f"tasks/{task}/error")


def do_the_rest(mount: Mount, file: Path, size: int) -> None:
    """Resume an interrupted task: all work is done in the end, and no finished work was repeated."""
    before = stat(mount, "t")
    chunks = mount.read("tasks/t/progress").split()[0]
    mount.write("tasks/t/rate_max", "max")
    assert mount.write("tasks/t/control", "resume") == (0, None)
    finish(mount, "t", "done")
    after = stat(mount, "t")
    assert int(after["done"]) == int(after["total"]) == size
    assert before["done"] == chunks
    units = [int(line.split()[5]) for line in mount.read("tasks/t/threads").splitlines()[1:]]
    assert sum(units) == size - int(chunks)
    assert file.stat().st_blocks * 512 == size


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
@pytest.mark.usefixtures("patient")
def test_a_worker_that_a_signal_ends(mounted: Mount, tmpfs: Path, number: signal.Signals) -> None:
    file = tmpfs / "f"
    pid = start(mounted, f"fallocate path={file} length=64M rate_max=1M chunk=128K")
    until(lambda: stat(mounted, "t")["done"] != "0", "a first chunk is done")
    os.kill(pid, number)
    finish(mounted, "t", "interrupted")
    error = mounted.read("tasks/t/error")
    assert error.startswith("EINTR at ")
    assert number.name in error
    do_the_rest(mounted, file, 64 * MIB)


@pytest.mark.parametrize("undo", [0, 1])
@pytest.mark.usefixtures("patient")
def test_sigterm_ends_a_worker_after_its_chunks(mounted: Mount, tmpfs: Path, undo: int) -> None:
    """As a service manager stops the caller's unit: nothing is taken back, and the task can be resumed."""
    file = tmpfs / "f"
    pid = start(mounted, f"fallocate path={file} length=64M rate_max=1M chunk=128K undo={undo}")
    until(lambda: stat(mounted, "t")["done"] != "0", "a first chunk is done")
    os.kill(pid, signal.SIGTERM)
    finish(mounted, "t", "interrupted")
    error = mounted.read("tasks/t/error")
    assert error.startswith("EINTR at ")
    words = "as when systemd stops a unit: resume does the rest"
    assert error.endswith(f"the worker died, killed by signal 15 (SIGTERM), {words}\n")
    done = int(stat(mounted, "t")["done"])
    # The file's last page exists from the start; with huge pages, so does the whole page of the last position.
    assert 0 < done <= allocated(file) <= Span(0, done).widened(HUGE).size + HUGE
    do_the_rest(mounted, file, 64 * MIB)


def test_a_cancel_that_sigterm_follows_is_a_cancel(mounted: Mount, tmpfs: Path) -> None:
    pid = start(mounted, f"fallocate path={tmpfs}/f length=64M rate_max=1M chunk=1M")
    os.kill(pid, signal.SIGSTOP)
    assert mounted.write("tasks/t/control", "cancel") == (0, None)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGCONT)
    finish(mounted, "t", "cancelled")


def test_a_stopped_worker_shows(mounted: Mount, tmpfs: Path) -> None:
    pid = start(mounted, f"fallocate path={tmpfs}/f length=64M rate_max=1M")
    os.kill(pid, signal.SIGSTOP)
    until(lambda: "stopped" in mounted.read("tasks/t/status"), "status says that the worker is stopped")
    os.kill(pid, signal.SIGCONT)
    until(lambda: "stopped" not in mounted.read("tasks/t/status"), "status says that it goes on")
    assert mounted.write("tasks/t/control", "cancel") == (0, None)
    finish(mounted, "t", "cancelled")


def test_the_spawner_is_killed(mounted: Mount, tmpfs: Path) -> None:
    start(mounted, f"fallocate path={tmpfs}/f length=16M rate_max=8M")
    child_called(mounted.pid, "ktaskfs: spawner").kill()
    until(lambda: "the spawner ended" in mounted.log.read_text(), "the daemon notices")
    assert mounted.write("tasks/control", f"fallocate path={tmpfs}/g length=1M name=next") == (0, None)
    finish(mounted, "next", "done")
    finish(mounted, "t", "done")


@contextlib.contextmanager
def cgroup(directory: Path, **limits: str) -> Iterator[Path]:
    """A new control group; ``limits`` are its files (``_`` for the dot)."""
    directory.mkdir()
    try:
        for name, value in limits.items():
            (directory / name.replace("__", ".")).write_text(value)
        yield directory
    finally:
        until(lambda: removed(directory), f"{directory} is empty")


def test_killed_for_want_of_memory(mounted: Mount, tmpfs: Path) -> None:
    v1 = Path("/sys/fs/cgroup/memory")
    if not (v1 / "memory.limit_in_bytes").exists() and not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        pytest.skip("no memory control group here")
    parent, limit = (v1, "memory__limit_in_bytes") if v1.exists() else (Path("/sys/fs/cgroup"), "memory__max")
    with cgroup(parent / f"kt{os.getpid()}", **{limit: str(24 * MIB)}) as group:
        pid = start(mounted, f"fallocate path={tmpfs}/f length=128M rate_max=1 chunk=1M")
        until(lambda: int(stat(mounted, "t")["done"]) > 0, "the first chunk")
        (group / "cgroup.procs").write_text(str(pid))
        mounted.write("tasks/t/rate_max", "max")
        state = mounted.read("tasks/t/wait").splitlines()[-1]
        # The kernel either kills the worker or refuses the page; the task reports both, and neither hides the rest.
        error = mounted.read("tasks/t/error")
        assert (state, error.split()[0]) in {("interrupted", "EINTR"), ("failed", "ENOMEM"), ("failed", "EFAULT")}
        assert 0 < int(stat(mounted, "t")["done"]) < 128 * MIB
        (tmpfs / "f").unlink()
        assert mounted.read("version")


def test_a_limit_on_huge_pages(mount_maker: MountMaker, area: Path) -> None:
    root = next((each for each in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")) if controllers(each)), None)
    if root is None:
        pytest.skip("no control group for huge pages here")
    count_huge_pages(root)
    with (
        cgroup(root / f"kt{os.getpid()}", hugetlb__2MB__max=str(8 * MIB)) as group,
        reserved(2 * MIB, 16),
        hugetlbfs(area / "huge", 2 * MIB) as huge,
    ):
        mount = mount_maker()
        pid = start(mount, f"fallocate path={huge}/f length=32M rate_max=1 max_threads=1 chunk=2M")
        (group / "cgroup.procs").write_text(str(pid))
        mount.write("tasks/t/rate_max", "max")
        finish(mount, "t", "failed")
        assert int(stat(mount, "t")["done"]) <= 12 * MIB
        assert mount.read("tasks/t/error").split()[0] in {"ENOMEM", "EFAULT"}


def controllers(root: Path) -> bool:
    file = root / "cgroup.controllers"
    return file.exists() and "hugetlb" in file.read_text().split()


@pytest.mark.usefixtures("patient")
def test_what_was_reserved_cannot_be_taken_away(mounted: Mount, area: Path) -> None:
    with reserved(2 * MIB, 16) as pool, hugetlbfs(area / "huge", 2 * MIB) as huge:
        spare = pool.available - 16
        start(mounted, f"fallocate path={huge}/f length=32M rate_max=1 chunk=2M")
        assert pool.available == spare
        too_much = (spare + 1) * 2 * MIB
        assert mounted.write("tasks/control", f"fallocate path={huge}/g length={too_much}") == (1, "ENOMEM")
        assert run("fallocate", "-l", str(too_much), str(huge / "h")).status == 1
        (huge / "h").unlink(missing_ok=True)
        mounted.write("tasks/t/rate_max", "max")
        finish(mounted, "t", "done")


@pytest.mark.parametrize("what", ["truncate", "unlink", "replace", "punch"])
def test_a_target_that_others_change_meanwhile(mounted: Mount, tmpfs: Path, what: str) -> None:
    file, other = tmpfs / "f", tmpfs / "other"
    other.write_text("of somebody else")
    start(mounted, f"fallocate path={file} length=64M rate_max=1 chunk=1M")
    match what:
        case "truncate":
            os.truncate(file, 0)
        case "unlink":
            file.unlink()
        case "replace":
            file.unlink()
            file.symlink_to(other)
        case "punch":
            subprocess.run(["fallocate", "-p", "-l", "64M", str(file)], check=True)
    mounted.write("tasks/t/rate_max", "max")
    state = mounted.read("tasks/t/wait").splitlines()[-1]
    assert state == ("failed" if what == "truncate" else "done")
    assert other.read_text() == "of somebody else"
    if what == "truncate":
        assert mounted.read("tasks/t/error") != "0\n"
        assert file.stat().st_size == 0


def test_cpus_taken_away(mounted: Mount, tmpfs: Path) -> None:
    pid = start(mounted, f"fallocate path={tmpfs}/f length=64M rate_max=1 chunk=1M")
    for thread in psutil.Process(pid).threads():
        with contextlib.suppress(ProcessLookupError):  # those without work end
            os.sched_setaffinity(thread.id, {0})
    mounted.write("tasks/t/rate_max", "max")
    finish(mounted, "t", "done")


def test_no_room_for_another_thread(mount_maker: MountMaker, tmpfs: Path, two_users: tuple[User, User]) -> None:
    """RLIMIT_NPROC counts threads: a user at his limit gets his task done, with fewer threads."""
    user = two_users[0]
    mount = mount_maker("mode=0666")
    script = 'ulimit -Su 1; exec bash -c \'echo "fallocate path=$0 length=64M name=t" > "$1"\' "$1" "$2"'
    outcome = mount.shell(script, str(tmpfs / "f"), str(mount.path / "tasks/control"), user=user)
    assert outcome.status == 0, outcome.err
    finish(mount, "t", "done")


def test_a_start_that_hangs_is_answered_and_can_be_killed(mounted: Mount, area: Path) -> None:
    """The target's directory is on a mount whose daemon does not answer: no request may wait for that."""
    hung = area / "hung"
    hung.mkdir()
    # A second ktaskfs whose daemon is stopped makes a mount that answers nothing.
    command = [interpreter(ROOT), "-m", "ktaskfs.cli.main", "mount", "--foreground"]
    other = subprocess.Popen(
        [*command, "-o", f"statedir={area / 'other'}", str(hung)], stderr=subprocess.DEVNULL, cwd=ROOT
    )
    try:
        until(lambda: run("cat", str(hung / "version")).status == 0, "the other mount answers")
        halt(other.pid)
        assert mounted.write("tasks/control", f"clear path={hung}/tasks/none/at/all name=t") == (0, None)
        assert mounted.read("tasks/t/state") == "starting\n"
        assert mounted.write("tasks/t/control", "cancel") == (0, None)
        assert mounted.read("tasks/t/state") == "starting\n", "it may have something to take back yet"
        assert mounted.write("tasks/t/control", "kill") == (0, None)
        finish(mounted, "t", "cancelled")
        assert mounted.read("version")
    finally:
        other.send_signal(signal.SIGCONT)
        # The kernel may not have released the objects of the killed worker's lookup yet.
        until(lambda: run("umount", str(hung)).status == 0, "the other mount is free")
        other.wait(DEADLINE)


def test_tmpfs_that_fills_up_meanwhile(mounted: Mount, area: Path) -> None:
    with make_tmpfs(area / "small", 64 * MIB) as small:
        start(mounted, f"fallocate path={small}/f length=48M rate_max=1 chunk=1M")
        run("dd", "if=/dev/zero", f"of={small}/other", "bs=1M", "count=64")
        mounted.write("tasks/t/rate_max", "max")
        finish(mounted, "t", "failed")
        assert mounted.read("tasks/t/error").split()[0] == "ENOSPC"
        (small / "other").unlink()
        do_the_rest(mounted, small / "f", 48 * MIB)
