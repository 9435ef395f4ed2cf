"""The main job, end to end, on every kind of memory, driven with echo and cat."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.attacks.callers import wait_for_worker
from tests.support.hugepages import reserved
from tests.support.memory_files import is_all
from tests.support.poll import until
from tests.support.processes import halt
from tests.support.shell import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

FILL = """
import mmap, sys
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
    for start in range(0, len(memory), 1 << 20):
        memory[start : start + (1 << 20)] = b"\\xff" * (1 << 20)
"""
HOLD_MEMFD = """
import os, sys
fd = os.memfd_create("guest", os.MFD_HUGETLB if sys.argv[2] == "huge" else 0)
os.ftruncate(fd, int(sys.argv[1]))
print(os.getpid(), fd, flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.usefixtures("patient")


def fill(path: Path | str) -> None:
    """Have another program write ones over all of a file, through a mapping: hugetlbfs has no write(2)."""
    subprocess.run([sys.executable, "-c", FILL, str(path)], check=True)


def start(mount: Mount, spec: str, user: User | None = None) -> None:
    assert mount.write("tasks/control", spec, user=user) == (0, None), mount.read("info/last_cmd_status", user=user)


def finish(mount: Mount, task: str, state: str = "done", user: User | None = None) -> None:
    """Follow a task to its end with cat."""
    lines = mount.read(f"tasks/{task}/wait", user=user).splitlines()
    assert lines[-1] == state, mount.read(f"tasks/{task}/error", user=user)
    assert mount.read(f"tasks/{task}/state", user=user) == f"{state}\n"


def stat(mount: Mount, task: str) -> dict[str, str]:
    """``tasks/NAME/stat`` as a dictionary."""
    return dict(line.split(" ", 1) for line in mount.read(f"tasks/{task}/stat").splitlines())


def test_allocate_and_clear_huge_pages(mounted: Mount, hugetlbfs: Path, page_size: int) -> None:
    pages = 64 if page_size < 1 << 30 else 2
    size, file = pages * page_size, hugetlbfs / "vm0"
    with reserved(page_size, pages) as pool:
        spare = pool.available - pages
        start(mounted, f"fallocate path={file} length={size} name=vm0")
        finish(mounted, "vm0")
        assert mounted.read("tasks/vm0/progress") == f"{size} / {size}\n"
        assert mounted.read("tasks/vm0/error") == "0\n"
        assert mounted.read("tasks/vm0/result") == ""
        assert file.stat().st_size == size
        assert file.stat().st_blocks * 512 == size
        assert file.stat().st_mode & 0o777 == 0o600
        assert pool.available == spare
        assert is_all(0, file, 0, size)
        fill(file)
        start(mounted, f"fallocate path={file} name=again")
        finish(mounted, "again")
        assert run("od", "-An", "-tx1", "-N1", str(file)).out.split() == ["ff"], "what was there was touched"
        start(mounted, f"clear path={file} name=scrub")
        finish(mounted, "scrub")
        assert is_all(0, file, 0, size)
        assert pool.available == spare
        file.unlink()


def test_allocate_and_clear_tmpfs(mounted: Mount, tmpfs: Path) -> None:
    size, file = 96 << 20, tmpfs / "f"
    start(mounted, json.dumps({"op": "fallocate", "path": str(file), "length": "96M", "name": "f", "mode": "0640"}))
    finish(mounted, "f")
    assert file.stat().st_blocks * 512 == size
    assert is_all(0, file, 0, size)
    fill(file)
    start(mounted, f"clear path='{file}' offset=4097 length=1000000 name=part")
    finish(mounted, "part")
    data = file.read_bytes()
    assert data.count(0) == 1000000
    assert data[4097 : 4097 + 1000000] == bytes(1000000)


@contextmanager
def memfd_holder(size: int, kind: str) -> Iterator[str]:
    """Another program that holds a memfd; gives its path."""
    command = [sys.executable, "-c", HOLD_MEMFD, str(size), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid, fd = process.stdout.readline().split()
        yield f"/proc/{pid}/fd/{fd}"
        process.communicate()


@pytest.mark.parametrize("kind", ["plain", "huge"])
def test_a_memfd_through_its_process(mounted: Mount, kind: str) -> None:
    size = 32 << 20
    with reserved(2 << 20, 16), memfd_holder(size, kind) as path:
        start(mounted, f"fallocate path={path} name=segment")
        finish(mounted, "segment")
        blocks = run("stat", "-L", "-c", "%b", path).out
        assert int(blocks) * 512 == size
        fill(path)
        start(mounted, f"clear path={path} name=scrub")
        finish(mounted, "scrub")
        assert is_all(0, path, 0, size)


def test_a_path_relative_to_the_writers_directory(mounted: Mount, tmpfs: Path) -> None:
    script = 'cd "$1" && echo "fallocate path=below length=4096 name=t" > "$2"/tasks/control'
    assert mounted.shell(script, str(tmpfs), str(mounted.path)).status == 0
    finish(mounted, "t")
    assert (tmpfs / "below").stat().st_size == 4096
    assert mounted.read("tasks/t/path") == f"{tmpfs}/below\n"


def test_a_worker_is_its_caller_and_has_a_name(
    mount_maker: MountMaker, tmpfs: Path, two_users: tuple[User, User]
) -> None:
    user = two_users[0]
    mount = mount_maker("mode=0666,cpu_percent=100")  # a helper on one CPU, too
    start(mount, f"fallocate path={tmpfs}/f length=128M rate_max=1M chunk=128K name=mine", user)
    pid = str(wait_for_worker(mount, "mine"))
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert status["Uid"].split() == [str(user.uid)] * 4
    assert status["Gid"].split() == [str(user.gid)] * 4
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapInh"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert run("ps", "-o", "args=", "-p", pid).out.strip() == "ktask/mine"

    def names() -> list[str]:
        return run("ps", "-L", "-o", "comm=", "-p", pid).out.split()

    until(lambda: any(name.startswith("ktask/mine:") for name in names()), "a helper has begun")
    assert "ktask/mine" in names()
    assert mount.write("tasks/mine/control", "cancel", user=two_users[1]) == (1, "EACCES")
    assert mount.write("tasks/mine/control", "cancel", user=user) == (0, None)
    finish(mount, "mine", "cancelled", user)


def test_an_ordinary_users_own_mount(mount_maker: MountMaker, tmpfs: Path, two_users: tuple[User, User]) -> None:
    user = two_users[0]
    mount = mount_maker(user=user)
    start(mount, f"fallocate path={tmpfs}/f length=16M name=f", user)
    finish(mount, "f", user=user)
    assert (tmpfs / "f").stat().st_uid == user.uid
    assert mount.write("tasks/control", "fallocate path=/dev/new length=1M", user=user) == (1, "EACCES")


def test_cancel_keeps_what_was_done_and_resume_does_the_rest(mounted: Mount, tmpfs: Path) -> None:
    start(mounted, f"fallocate path={tmpfs}/f length=128M rate_max=1M chunk=128K name=t")
    assert mounted.write("tasks/t/control", "cancel") == (0, None)
    finish(mounted, "t", "cancelled")
    done, _, total = mounted.read("tasks/t/progress").split()
    assert int(done) < int(total) == 128 << 20
    assert mounted.write("tasks/t/rate_max", "max") == (0, None)
    assert mounted.write("tasks/t/control", "resume") == (0, None)
    finish(mounted, "t")
    assert mounted.read("tasks/t/progress") == f"{total} / {total}\n"
    assert is_all(0, tmpfs / "f", 0, 128 << 20)


def test_a_cancel_that_the_worker_has_not_yet_obeyed_is_shown(mounted: Mount, tmpfs: Path) -> None:
    start(mounted, f"fallocate path={tmpfs}/f length=128M rate_max=1M chunk=128K name=t")
    worker = wait_for_worker(mounted, "t")
    assert "State:\trunning\n" in mounted.read("tasks/t/status")
    halt(worker)
    try:
        assert mounted.write("tasks/t/control", "cancel") == (0, None)
        words = "State:\trunning (a cancel is pending; its worker is stopped by a signal)\n"
        assert words in mounted.read("tasks/t/status")
    finally:
        os.kill(worker, signal.SIGCONT)
    finish(mounted, "t", "cancelled")
    assert "State:\tcancelled\n" in mounted.read("tasks/t/status")


def test_pause_holds_and_resume_goes_on(mounted: Mount, tmpfs: Path) -> None:
    start(mounted, f"fallocate path={tmpfs}/f length=128M rate_max=1M chunk=128K name=t")
    assert mounted.write("tasks/t/control", "pause") == (0, None)
    assert mounted.read("tasks/t/state") == "paused\n"
    assert mounted.read("tasks/t/control").split() == ["resume", "cancel", "kill"]
    mounted.write("tasks/t/rate_max", "max")
    assert mounted.write("tasks/t/control", "resume") == (0, None)
    finish(mounted, "t")


def test_a_killed_worker_is_interrupted_and_its_rest_can_be_done(mounted: Mount, tmpfs: Path) -> None:
    start(mounted, f"fallocate path={tmpfs}/f length=64M rate_max=1M chunk=128K name=t")
    assert mounted.write("tasks/t/control", "kill") == (0, None)
    finish(mounted, "t", "interrupted")
    assert "SIGKILL" in mounted.read("tasks/t/error")
    mounted.write("tasks/t/rate_max", "max")
    assert mounted.write("tasks/t/control", "resume") == (0, None)
    finish(mounted, "t")
    assert (tmpfs / "f").stat().st_blocks * 512 == 64 << 20


def test_tunables_hold(mounted: Mount, tmpfs: Path) -> None:
    assert mounted.write("debug/ktask_max_threads", "1") == (0, None)
    start(mounted, f"fallocate path={tmpfs}/f length=128M name=alone")
    finish(mounted, "alone")
    assert stat(mounted, "alone")["threads"] == "1"
    assert len(mounted.read("tasks/alone/threads").splitlines()) == 2


def test_tasks_go_on_when_the_daemon_is_killed(mount_maker: MountMaker, area: Path, tmpfs: Path) -> None:
    state = area / "kept"
    first = mount_maker(statedir=state)
    start(first, f"fallocate path={tmpfs}/f length=64M rate_max=1M chunk=128K name=t")
    start(first, f"fallocate path={tmpfs}/g length=1M name=ended")
    finish(first, "ended")
    pid = str(wait_for_worker(first, "t"))
    first.kill()
    second = mount_maker(statedir=state)
    assert stat(second, "t")["pid"] == pid
    assert second.read("tasks/ended/state") == "done\n"
    second.write("tasks/t/rate_max", "max")
    finish(second, "t")
    assert second.read("tasks/t/progress") == f"{64 << 20} / {64 << 20}\n"


def test_tasks_go_on_after_umount(mount_maker: MountMaker, area: Path, tmpfs: Path) -> None:
    state = area / "kept"
    first = mount_maker(statedir=state)
    start(first, f"fallocate path={tmpfs}/f length=32M rate_max=1M chunk=1M name=t")
    first.close()
    assert "1 tasks go on: t" in first.log.read_text()
    second = mount_maker(statedir=state)
    assert second.write("tasks/t/rate_max", "max") == (0, None)
    finish(second, "t")
    assert is_all(0, tmpfs / "f", 0, 32 << 20)


def test_what_the_mount_says_of_itself(mounted: Mount) -> None:
    from ktaskfs.version import VERSION

    assert mounted.read("version") == f"{VERSION}\n"
    assert "tasks/control" in mounted.read("README")
    assert mounted.read("operations/fallocate/parameters").splitlines()[0].split() == [
        "name",
        "type",
        "default",
        "meaning",
    ]
    assert mounted.read("info/hugepages").splitlines()[0].split()[:3] == ["size", "node", "total"]
    assert mounted.read("info/last_task") == ""
