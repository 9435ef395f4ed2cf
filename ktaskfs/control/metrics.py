"""What ``metrics`` counts: tasks by operation and state, ends by outcome, units, pools, and the daemon itself.

No label has a task's name, a path or a user in it: anybody may read the file, and the number of series stays small. All
series are there from the start: an alert on the increase of one that appears with its first event would not see that.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import trio

from ktaskfs.control.facts import Facts
from ktaskfs.control.task_text import units_of
from ktaskfs.host.hugepages import read_node_pools, read_pools
from ktaskfs.tasks.task import ENDED, WORKING, State
from ktaskfs.vfs import Look, TextFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ktaskfs.control.facts import Load
    from ktaskfs.control.transitions import Transition
    from ktaskfs.host.hugepages import Pool
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.operations.base.operation import Operation
    from ktaskfs.tasks.task import Task
    from ktaskfs.vfs import Caller

MAX_AGE: Final = 1.0
"""Seconds for which the facts are kept, and the texts made of them."""
UNITS_PER_SECOND: Final = 1 << 44
"""No run is believed to do more, nor more than that in its first second: 16 TiB."""
NO_OPERATION: Final = "none"
"""The label of tasks without an operation."""


class Exposition(StrEnum):
    """The two texts that there are of the facts."""

    PROMETHEUS = "prometheus"
    OPENMETRICS = "openmetrics"


@dataclass
class _Run:
    """A task at work since ``began`` (time.monotonic()), and the units that were counted for it."""

    began: float
    units: int = 0


class Metrics:
    """Keeps the counters of one mount, and the texts of the files."""

    def __init__(self, operations: Mapping[str, Operation[Any]], kernel: Kernel, load: Callable[[], Load]) -> None:
        self._kernel = kernel
        self._load = load
        names = sorted(operations)
        self._started: Counter[tuple[str, ...]] = Counter({(name,): 0 for name in names})
        self._refused = self._started.copy()
        self._ended: Counter[tuple[str, ...]] = Counter({(n, str(end)): 0 for n in names for end in sorted(ENDED)})
        self._units: Counter[tuple[str, ...]] = Counter({(n, str(operations[n].units)): 0 for n in names})
        self._kept: Counter[tuple[str, ...]] = Counter({(n, str(state)): 0 for n in names for state in State})
        """Ended tasks that are still in the table, which may be very many."""
        self._kept[NO_OPERATION, str(State.NEW)] = 0  # it can be in no other state
        self._unfinished: dict[Task, None] = {}
        self._runs: dict[Task, _Run] = {}
        self._lock = trio.Lock()
        """Guards the fields below while a text is made."""
        self._texts: dict[Exposition, bytes] = {}
        self._facts: Facts | None = None
        self._taken = 0.0

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
        tasks = self._kept.copy()
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

    async def text(self, form: Exposition) -> bytes:
        """A file, of facts that are at most MAX_AGE old. All who open it in that time share it."""
        async with self._lock:
            if self._facts is None or trio.current_time() - self._taken >= MAX_AGE:
                self._facts = await self.facts()
                self._taken = trio.current_time()
                self._texts.clear()
            if form not in self._texts:
                # The library takes as long to import as a whole mount: on a thread, and at the first read only.
                self._texts[form] = await trio.to_thread.run_sync(_render, self._facts, form)
            return self._texts[form]


class MetricsFile(TextFile):
    """A file whose text is of now whenever it is read, and whose modification time says so.

    Monitoring takes a file for stale whose time does not move. The other times stay: tar compares st_ctime before and
    after it reads a file.
    """

    __slots__ = ()

    attr_timeout = 0.0

    async def look(self, caller: Caller, *, anew: bool) -> Look:
        return Look((await super().look(caller, anew=anew)).size, time.time_ns())


def _render(facts: Facts, form: Exposition) -> bytes:
    from ktaskfs.control.exposition import render_openmetrics, render_prometheus

    return render_openmetrics(facts) if form is Exposition.OPENMETRICS else render_prometheus(facts)


def _operation(task: Task) -> str:
    return NO_OPERATION if task.operation is None else task.operation.name
