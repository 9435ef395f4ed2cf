"""poll(2), select(2) and epoll(7) with POLLPRI on a task's files, by kernfs' rule."""

from __future__ import annotations

import os
import select
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.poll import DEADLINE, until
from tests.support.slow import start_slow, stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Mount

CHANGED = select.POLLPRI | select.POLLERR


@contextmanager
def opened(mount: Mount, file: str) -> Iterator[int]:
    fd = os.open(mount.path / file, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def polled(fd: int, seconds: float = DEADLINE) -> int:
    """The events of poll(2) for POLLPRI within ``seconds``."""
    poll = select.poll()
    poll.register(fd, select.POLLPRI)
    return dict(poll.poll(seconds * 1000)).get(fd, 0)


def reread(fd: int) -> str:
    return os.pread(fd, 65536, 0).decode()


@pytest.mark.parametrize("file", ["state", "status", "stat", "progress"])
def test_the_end_of_a_task_wakes(mounted: Mount, memory: Path, file: str) -> None:
    start_slow(mounted, memory, "slow")
    mounted.write("tasks/slow/control", "pause")
    with opened(mounted, f"tasks/slow/{file}") as fd:
        assert polled(fd, 0) == CHANGED, "a file that was not read yet counts as changed"
        until(lambda: not (reread(fd) and polled(fd, 0)), "the chunks in flight are done")
        stop(mounted, "slow")
        assert polled(fd) == CHANGED
        assert polled(fd) == CHANGED, "until it is read"
        if file in ("state", "status", "stat"):
            assert "cancelled" in reread(fd)
        reread(fd)
        assert polled(fd, 0) == 0


@pytest.mark.parametrize("file", ["status", "stat", "progress"])
def test_work_that_goes_on_wakes_now_and_then(mounted: Mount, memory: Path, file: str) -> None:
    """Each wake finds a changed text; there are far fewer wakes than finished chunks."""
    start_slow(mounted, memory, "slow", rate="1M")  # 256 chunks a second
    with opened(mounted, f"tasks/slow/{file}") as fd, opened(mounted, "tasks/slow/progress") as progress:
        texts = [reread(fd)]
        first = int(reread(progress).split()[0])
        for _ in range(6):
            assert polled(fd) == CHANGED
            texts.append(reread(fd))
        chunks = (int(reread(progress).split()[0]) - first) // 4096
        assert len(set(texts)) == 7
        assert chunks > 10 * 6
    stop(mounted, "slow")


def test_progress_does_not_wake_who_waits_for_the_state(mounted: Mount, memory: Path) -> None:
    start_slow(mounted, memory, "slow", rate="1M")
    with opened(mounted, "tasks/slow/state") as state, opened(mounted, "tasks/slow/progress") as progress:
        assert reread(state) == "running\n"
        epoll = select.epoll()
        epoll.register(state, select.EPOLLPRI | select.EPOLLET)
        for _ in range(3):
            reread(progress)
            assert polled(progress) == CHANGED
            assert epoll.poll(0) == []
        mounted.write("tasks/slow/control", "pause")
        assert [fd for fd, _ in epoll.poll(DEADLINE)] == [state]
        epoll.close()
    stop(mounted, "slow")


def test_a_parameter_that_is_set_wakes_who_waits_for_the_status(mounted: Mount) -> None:
    mounted.shell("mkdir tasks/new; echo clear > tasks/new/op")
    with opened(mounted, "tasks/new/status") as fd:
        reread(fd)
        assert select.select([], [], [fd], 0) == ([], [], [])
        mounted.write("tasks/new/path", "/somewhere")
        assert select.select([], [], [fd], DEADLINE) == ([], [], [fd])
        assert "Path:\t/somewhere\n" in reread(fd)


def test_wait_is_readable_at_the_end_only(mounted: Mount, memory: Path) -> None:
    start_slow(mounted, memory, "slow")
    fd = os.open(mounted.path / "tasks/slow/wait", os.O_RDONLY | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(0) == []
        with pytest.raises(BlockingIOError):
            os.read(fd, 4096)
        mounted.write("tasks/slow/control", "cancel")
        assert poll.poll(DEADLINE * 1000) == [(fd, select.POLLIN)]
        assert os.read(fd, 4096).endswith(b"cancelled\n")
        assert os.read(fd, 4096) == b""
    finally:
        os.close(fd)


def voluntary_switches(mount: Mount) -> int:
    """How often the daemon has gone to sleep so far."""
    count: int = psutil.Process(mount.pid).num_ctx_switches().voluntary
    return count


def test_the_daemon_sleeps_while_nobody_polls(mounted: Mount, memory: Path) -> None:
    """A task at work costs no wake of the daemon; nor does one who polls what does not move."""
    start_slow(mounted, memory, "slow", rate="1M")
    mounted.shell("mkdir tasks/new")
    with opened(mounted, "tasks/slow/progress") as fd, opened(mounted, "tasks/new/status") as still:
        reread(fd)
        assert polled(fd) == CHANGED  # the watcher has begun, and must end again
        reread(still)
        assert polled(still, 0) == 0
        until(lambda: rests(mounted), "the daemon sleeps for a second")
    stop(mounted, "slow")


def rests(mount: Mount) -> bool:
    """Whether the daemon sleeps through a whole second, four times as long as the watcher's interval."""
    before = voluntary_switches(mount)
    time.sleep(1)
    return voluntary_switches(mount) == before
