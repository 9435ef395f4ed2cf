"""The number of threads that running tasks can use: fewer than they want while a signal or a rate limit holds them
back, or if more do not help."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.progress import FoundWhy, ThreadState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ktaskfs.progress import Snapshot
    from ktaskfs.tasks.task import Task

LOG: Final = logging.getLogger(__name__)
SLACK: Final = 0.1
"""Extra threads beyond the average of busy ones, before rounding up: if one thread is always busy, a second may
help."""


class _Sample(NamedTuple):
    """One observation of a task: its time (time.monotonic()), rate limit, the threads' work, and the threads it can
    use.

    ``usable`` is None before the second observation.
    """

    at: float
    rate: int
    busy_us: int
    chunks: Mapping[int, int]
    usable: int | None


class ThreadUse:
    """The last observations of running tasks."""

    def __init__(self) -> None:
        self._samples: dict[Task, _Sample] = {}

    def usable(self, task: Task) -> int | None:
        """Threads that ``task`` can use, None if unknown. A new rate limit invalidates the last observation."""
        look = self._samples.get(task)
        return None if look is None or look.rate != task.requests.rate else look.usable

    def forget_all_but(self, tasks: Collection[Task]) -> None:
        """Forget tasks that no longer run."""
        self._samples = {task: look for task, look in self._samples.items() if task in tasks}

    def look(self, task: Task) -> None:
        """Observe how many threads ``task`` can use."""
        if task.worker is None:
            self._samples.pop(task, None)
            return
        try:
            snapshot = task.snapshot()
            stopped = task.worker.is_stopped()
        except OSError as error:
            LOG.error("cannot see the work of task %s: %s", task.name, error)
            return
        now, before = time.monotonic(), self._samples.get(task)
        usable: int | None = None
        if stopped:
            usable = 1
        elif task.requests.rate and before is not None:
            usable = _busy_threads(snapshot, before, now)
        elif snapshot.found_why is FoundWhy.ENOUGH:
            usable = snapshot.found + max(1, snapshot.found // 4)  # it keeps trying a quarter more
        self._samples[task] = _Sample(
            at=now,
            rate=task.requests.rate,
            busy_us=sum(each.busy_us for each in snapshot.threads),
            chunks={each.slot: each.chunks for each in snapshot.threads},
            usable=usable,
        )


def _busy_threads(snapshot: Snapshot, before: _Sample, now: float) -> int:
    """Threads that worked since the observation ``before``, at least 1: by their time in chunks, or still in one."""
    busy = (sum(each.busy_us for each in snapshot.threads) - before.busy_us) / 1e6 / max(now - before.at, 1e-3)
    in_one_chunk = sum(
        each.state is ThreadState.RUNNING
        and each.start < each.end
        and before.chunks.get(each.slot, each.chunks) == each.chunks
        for each in snapshot.threads
    )
    return max(1, in_one_chunk, math.ceil(min(busy, len(snapshot.threads)) + SLACK))
