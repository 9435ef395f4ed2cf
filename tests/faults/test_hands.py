"""Hands of a worker that are killed, stopped, or lose their worker. They are sealed like the worker.

The files are long enough for hands, and have pages only in their first part.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support import filesystems, hugepages
from tests.support.memory_files import HUGE, allocated, is_all, make_dirty
from tests.support.poll import until
from tests.support.processes import has_ended, status_of
from tests.support.shell import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

LENGTH = 8 << 30
DATA = 48 * HUGE
SLOW = f"length={LENGTH} chunk=2M rate_max=1M"


@pytest.fixture(scope="module")
def pages(root: None) -> Iterator[None]:
    with hugepages.reserved(HUGE, DATA // HUGE):
        yield


@pytest.fixture
def file(pages: None, area: Path) -> Iterator[Path]:
    with filesystems.hugetlbfs(area / "huge", HUGE) as huge:
        path = huge / "f"
        make_dirty(path, DATA)
        os.truncate(path, LENGTH)
        path.chmod(0o666)
        yield path


def stat(mount: Mount) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in mount.read("tasks/t/stat").splitlines())


def start(mount: Mount, spec: str, user: User | None = None) -> tuple[psutil.Process, list[psutil.Process]]:
    """Start the task ``t``; its worker and, after a first chunk, its hands, of which the first forks the others."""
    assert mount.write("tasks/control", f"{spec} name=t", user=user) == (0, None), mount.read("info/last_cmd_status")
    until(lambda: stat(mount)["done"] != "0", "a first chunk is done")
    worker = psutil.Process(int(stat(mount)["pid"]))
    return worker, sorted(worker.children(recursive=True), key=lambda each: each.create_time())


def finish(mount: Mount, state: str) -> None:
    mount.write("tasks/t/rate_max", "max")
    assert mount.read("tasks/t/wait").splitlines()[-1] == state, mount.read("tasks/t/error")


def gone(hands: list[psutil.Process]) -> bool:
    return all(has_ended(each) for each in hands)


def test_a_large_task_has_them_and_a_small_one_has_none(mounted: Mount, file: Path) -> None:
    worker, hands = start(mounted, f"clear path={file} {SLOW} max_threads=1")
    assert [each.ppid() for each in hands] == [worker.pid] * 2  # the child that forks, and a hand for the thread
    finish(mounted, "done")
    assert gone(hands)
    assert allocated(file) == DATA
    assert is_all(0, file, 0, LENGTH)
    (mounted.path / "tasks/t").rmdir()
    _, none = start(mounted, f"clear path={file} length=1G chunk=2M rate_max=8M")
    assert none == []
    finish(mounted, "done")


@pytest.mark.parametrize("which", ["all", "hand"])
def test_killed_the_task_goes_on(mounted: Mount, file: Path, which: str) -> None:
    _, hands = start(mounted, f"clear path={file} {SLOW} max_threads=2")
    for hand in hands if which == "all" else hands[1:]:
        hand.kill()
    finish(mounted, "done")
    assert is_all(0, file, 0, LENGTH)
    assert gone(hands)


@pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("kill", "interrupted")])
def test_they_end_with_the_task(mounted: Mount, file: Path, verb: str, state: str) -> None:
    _, hands = start(mounted, f"clear path={file} {SLOW}")
    assert hands
    assert mounted.write("tasks/t/control", verb) == (0, None)
    assert mounted.read("tasks/t/wait").splitlines()[-1] == state
    until(lambda: gone(hands), "they are gone")


@pytest.mark.parametrize("stopped", [False, True])
def test_they_die_with_the_worker_and_a_resume_does_the_rest(mounted: Mount, file: Path, stopped: bool) -> None:
    worker, hands = start(mounted, f"clear path={file} {SLOW}")
    if stopped:
        for hand in hands:
            hand.suspend()
    worker.send_signal(signal.SIGKILL)
    assert mounted.read("tasks/t/wait").splitlines()[-1] == "interrupted"
    until(lambda: gone(hands), "they are gone")
    assert mounted.write("tasks/t/control", "resume") == (0, None)
    finish(mounted, "done")
    assert is_all(0, file, 0, LENGTH)


def test_paused_they_wait(mounted: Mount, file: Path) -> None:
    _, hands = start(mounted, f"clear path={file} {SLOW}")
    assert mounted.write("tasks/t/control", "pause") == (0, None)
    until(lambda: all(each.status() == psutil.STATUS_SLEEPING for each in hands), "they sleep")
    assert not is_all(0, file, 0, DATA)
    assert mounted.write("tasks/t/control", "resume") == (0, None)
    finish(mounted, "done")
    assert is_all(0, file, 0, LENGTH)


def test_a_file_that_is_truncated(mounted: Mount, file: Path) -> None:
    start(mounted, f"clear path={file} {SLOW}")
    os.truncate(file, HUGE)
    finish(mounted, "failed")
    error = mounted.read("tasks/t/error")
    assert error.startswith("ENXIO at ")
    assert f"{file} was truncated to {HUGE} bytes during the work" in error


def test_a_second_task_on_the_file_is_no_stranger(mounted: Mount, file: Path) -> None:
    start(mounted, f"clear path={file} {SLOW}")
    assert mounted.write("tasks/control", f"fill path={file} length=2M name=u") == (0, None), mounted.read(
        "info/last_cmd_status"
    )
    finish(mounted, "done")


def test_sealed_as_the_worker(mount_maker: MountMaker, file: Path, two_users: tuple[User, User]) -> None:
    mount = mount_maker("mode=0666")
    for user in (two_users[0], None):
        worker, hands = start(mount, f"clear path={file} {SLOW} max_threads=1", user=user)  # no hand is new
        assert len(hands) == 2
        kept = ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"]
        for hand in hands:
            for key in [*kept, "Cpus_allowed", "SigBlk"]:
                assert status_of(hand.pid)[key] == status_of(worker.pid)[key], key
            for name in ("cgroup", "limits", "attr/current", "oom_score_adj"):
                assert seen(hand.pid, name) == seen(worker.pid, name)
            assert os.stat(f"/proc/{hand.pid}/fd").st_uid == 0  # it is not dumpable
            for link in ("root", "cwd", "ns/user", "ns/mnt"):  # none holds the caller's directory
                assert os.readlink(f"/proc/{hand.pid}/{link}") == os.readlink(f"/proc/{worker.pid}/{link}")
            there = [
                os.readlink(f"/proc/{hand.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{hand.pid}/fd") if int(fd) > 2
            ]
            assert {link.partition(":")[0] for link in there} - {"anon_inode"} == {str(file), "socket"}
            assert [link for link in there if "anon_inode" in link] in ([], ["anon_inode:[userfaultfd]"])
        if user is not None:
            outcome = run("cat", f"/proc/{hands[0].pid}/maps", user=two_users[1])
            assert outcome.status != 0
        mount.write("tasks/t/control", "cancel")
        finish(mount, "cancelled")
        (mount.path / "tasks/t").rmdir()


def seen(pid: int, name: str) -> str | None:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}") as text:
        return text.read()
    return None
