"""The threads that a running task can use, as its status shows them."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ktaskfs.progress import Phase, Requests, Shape, ThreadProgress, ThreadState
from ktaskfs.tasks.task import EMPTY, Origin, Task
from ktaskfs.tasks.thread_use import ThreadUse
from ktaskfs.tasks.worker_handle import WorkerHandle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.progress import Snapshot


@pytest.fixture
def pidfd() -> Iterator[int]:
    """This process."""
    fd = os.pidfd_open(os.getpid())
    yield fd
    os.close(fd)


class Worked(Task):
    """A task of this process, which ``pidfd`` leads to, whose snapshot is set."""

    def __init__(self, pidfd: int, rate: int) -> None:
        super().__init__(Origin.now(1, "t", 0, 0))
        self.worker = WorkerHandle(os.getpid(), 0, pidfd, -1, Shape(4, 4))
        self.requests = Requests(rate=rate)
        self.now = 0.0
        self.threads = [ThreadProgress(n, 1 + n, 0, ThreadState.THROTTLED, 0, 0, 0, 0, 0, 0) for n in range(4)]

    def snapshot(self) -> Snapshot:
        return replace(EMPTY, phase=Phase.RUNNING, threads=tuple(self.threads))

    def work(self, *busy: float) -> None:
        """Each thread has been busy for so many seconds, and has finished a chunk if it was."""
        for slot, seconds in enumerate(busy):
            before = self.threads[slot]
            self.threads[slot] = before._replace(
                busy_us=before.busy_us + round(seconds * 1e6), chunks=before.chunks + (seconds > 0)
            )


@pytest.mark.parametrize(
    ("busy", "usable"),
    [((0, 0, 0, 0), 1), ((0.8,), 1), ((0.95,), 2), ((0.5, 0.5, 0.5), 2), ((1, 1, 1, 1), 5), ((9, 0), 5)],
)
def test_a_limited_task_can_use_as_many_threads_as_were_busy(
    pidfd: int, monkeypatch: pytest.MonkeyPatch, busy: tuple[float, ...], usable: int
) -> None:
    task, use = Worked(pidfd, rate=1), ThreadUse()
    monkeypatch.setattr(time, "monotonic", lambda: task.now)
    use.look(task)
    assert use.usable(task) is None
    task.work(*busy)
    task.now = 1.0
    use.look(task)
    assert use.usable(task) == usable
    task.requests = Requests(rate=2)
    assert use.usable(task) is None


def test_a_thread_in_a_long_chunk_counts(pidfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    task, use = Worked(pidfd, rate=1), ThreadUse()
    monkeypatch.setattr(time, "monotonic", lambda: task.now)
    task.threads[:3] = [each._replace(state=ThreadState.RUNNING, start=0, end=9) for each in task.threads[:3]]
    use.look(task)
    task.now = 1.0
    use.look(task)
    assert use.usable(task) == 3


def test_a_task_without_a_limit_or_a_worker_has_what_it_wants(pidfd: int) -> None:
    task, use = Worked(pidfd, rate=0), ThreadUse()
    use.look(task)
    use.look(task)
    assert use.usable(task) is None
    task.worker = None
    use.look(task)
    assert use.usable(task) is None
    use.forget_all_but([])
