"""What ``metrics`` counts: tasks by operation and state, ends by outcome, units, pools, and the daemon itself.

No label has a task's name, a path or a user in it: anybody may read the file, and the number of series stays small.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.control.facts import Facts
from ktaskfs.control.task_text import units_of
from ktaskfs.host.hugepages import read_node_pools, read_pools
from ktaskfs.tasks.task import ENDED, WORKING, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.control.facts import Load
    from ktaskfs.control.transitions import Transition
    from ktaskfs.host.hugepages import Pool
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.tasks.table import TaskTable
    from ktaskfs.tasks.task import Task

MAX_AGE: Final = 1.0
"""Seconds for which the text is kept."""
UNITS_PER_SECOND: Final = 1 << 44
"""No run is believed to do more, nor more than that in its first second: 16 TiB."""
NO_OPERATION: Final = "none"
"""The label of tasks without an operation."""


@dataclass
class _Run:
    """A task at work since ``began`` (time.monotonic()), and the units that were counted for it."""

    began: float
    units: int = 0


class Metrics:
    """Keeps the counters of one mount, and the text of the file."""

    def __init__(self, table: TaskTable, kernel: Kernel, load: Callable[[], Load]) -> None:
        self._table = table
        self._kernel = kernel
        self._load = load
        self._started: Counter[tuple[str, ...]] = Counter()
        self._refused: Counter[tuple[str, ...]] = Counter()
        self._ended: Counter[tuple[str, ...]] = Counter()
        self._units: Counter[tuple[str, ...]] = Counter()
        self._kept: Counter[tuple[str, ...]] = Counter()
        """Ended tasks that are still in the table, which may be very many."""
        self._unfinished: dict[Task, None] = {}
        self._runs: dict[Task, _Run] = {}
        self._lock = trio.Lock()
        """Guards the two fields below while the text is made."""
        self._text = b""
        self._made = -MAX_AGE

    def count(self, transition: Transition) -> None:
        """Observe a transition. A task whose end an earlier daemon saw is not counted again."""
        task, old, new = transition.task, transition.old, transition.new
        if old in ENDED:
            self._kept[_operation(task), str(old)] -= 1
        if new in ENDED:
            self._kept[_operation(task), str(new)] += 1
        if new is None or new in ENDED:
            self._unfinished.pop(task, None)
        else:
            self._unfinished[task] = None
        if new in WORKING:
            self._runs.setdefault(task, _Run(time.monotonic()))
        elif task in self._runs:
            self._sample(task)
            del self._runs[task]
        if old in WORKING and new in ENDED:
            self._ended[_operation(task), str(new)] += 1
        elif old is State.STARTING:
            (self._started if new in WORKING else self._refused)[_operation(task),] += 1

    def _sample(self, task: Task) -> None:
        """Count the units that the threads of this run have done since the last look.

        Unlike ``done`` they do not fall when a task is undone. The page is the owner's to forge, and everybody reads
        the sum: it never falls, and no run adds more than its total, or than memory can give in the time.
        """
        run, snapshot = self._runs[task], task.snapshot()
        most = int(UNITS_PER_SECOND * max(1.0, time.monotonic() - run.began))
        total = snapshot.total or task.history.planned
        units = min(sum(each.units for each in snapshot.threads), total, most)
        self._units[_operation(task), str(units_of(task))] += max(0, units - run.units)
        run.units = max(run.units, units)

    async def facts(self) -> Facts:
        """The figures of this moment; others run while the pages of many tasks are read."""
        for task in list(self._runs):
            await trio.lowlevel.checkpoint()
            if task in self._runs:
                self._sample(task)
        pools = await trio.to_thread.run_sync(self._pools)
        before = trio.current_time()
        await trio.lowlevel.checkpoint()
        tasks = +self._kept
        tasks.update((_operation(task), str(task.state)) for task in self._unfinished)
        return Facts(
            tasks=tasks,
            started=self._started.copy(),
            refused=self._refused.copy(),
            ended=self._ended.copy(),
            units=self._units.copy(),
            pools=pools,
            load=self._load(),
            lag=trio.current_time() - before,
        )

    def _pools(self) -> tuple[Pool, ...]:
        return (*read_pools(self._kernel), *read_node_pools(self._kernel))

    async def text(self) -> bytes:
        """The file, which is at most MAX_AGE old. All who open it in that time share it."""
        async with self._lock:
            if trio.current_time() - self._made >= MAX_AGE:
                # The library takes as long to import as a whole mount: on a thread, and at the first read only.
                self._text = await trio.to_thread.run_sync(_render, await self.facts())
                self._made = trio.current_time()
            return self._text


def _render(facts: Facts) -> bytes:
    from ktaskfs.control.openmetrics import render

    return render(facts).encode()


def _operation(task: Task) -> str:
    return NO_OPERATION if task.operation is None else task.operation.name
