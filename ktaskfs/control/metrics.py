"""The counters of ``metrics``: tasks by operation and state, ends by outcome, units, durations, pools, the daemon.

No label contains a task's name, a path or a user: anybody may read the file, and the number of series stays small. All
series exist from the start, so that an alert sees the increase at the first event.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.control.durations import Durations
from ktaskfs.control.facts import Facts
from ktaskfs.host.hugepages import read_node_pools, read_pools
from ktaskfs.tasks.task import ENDED, WORKING, State
from ktaskfs.user_threads import in_thread
from ktaskfs.vfs import TextFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ktaskfs.control.transitions import Transition
    from ktaskfs.host.hugepages import Pool
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.operations.base.operation import SpecWord
    from ktaskfs.tasks.task import Task
    from ktaskfs.vfs import Caller
    from ktaskfs.vfs.open_texts import TextSnapshot

MAX_AGE: Final = 1.0
"""Seconds for which the facts and their texts are kept."""
UNITS_PER_SECOND: Final = 1 << 44
"""Maximum bytes per second that a run may report, and in its first second: 16 TiB."""
NO_OPERATION: Final = "none"
"""The label of tasks without an operation."""


class Exposition(StrEnum):
    """The two formats of the facts."""

    PROMETHEUS = "prometheus"
    OPENMETRICS = "openmetrics"


@dataclass
class _RunningTask:
    """A task running since ``began`` (time.monotonic()), and its counted units.

    ``whole``: this daemon saw the beginning; an adopted task began at an unknown time.
    """

    began: float
    whole: bool
    units: int = 0


class Metrics:
    """Keeps the counters of one mount, and the texts of the files."""

    def __init__(self, operations: Mapping[str, SpecWord], kernel: Kernel, open_handles: Callable[[], int]) -> None:
        self._kernel = kernel
        self._open_handles = open_handles
        names = sorted(operations)
        self._started: Counter[tuple[str, ...]] = Counter({(name,): 0 for name in names})
        self._refused = self._started.copy()
        self._ended: Counter[tuple[str, ...]] = Counter({(n, str(end)): 0 for n in names for end in sorted(ENDED)})
        self._units: Counter[tuple[str, ...]] = Counter({(n, str(operations[n].units)): 0 for n in names})
        self._durations = {name: Durations() for name in names}
        self._kept: Counter[tuple[str, ...]] = Counter({(n, str(state)): 0 for n in names for state in State})
        """Ended tasks that are still in the table, perhaps very many."""
        self._kept[NO_OPERATION, str(State.NEW)] = 0  # it can be in no other state
        self._unfinished: dict[Task, None] = {}
        self._runs: dict[Task, _RunningTask] = {}
        self._lock = trio.Lock()
        """Guards the fields below while a text is made."""
        self._texts: dict[Exposition, bytes] = {}
        self._facts: Facts | None = None
        self._taken = 0.0

    def count(self, transition: Transition) -> None:
        """Observe a transition. A task that ended under an earlier daemon is not counted again."""
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
            self._runs.setdefault(task, _RunningTask(time.monotonic(), whole=old is State.STARTING))
        elif task in self._runs:
            self._sample(task)
            run = self._runs.pop(task)
            if run.whole and new is State.DONE:
                name = _operation(task)
                self._durations[name] = self._durations[name].plus(time.monotonic() - run.began)
        if old in WORKING and new in ENDED:
            self._ended[_operation(task), str(new)] += 1
        elif old is State.STARTING and new in WORKING:
            self._started[_operation(task),] += 1
        elif _is_refusal(transition):
            self._refused[_operation(task),] += 1

    def _sample(self, task: Task) -> None:
        """Count the units that the threads of this run have done since the last call.

        Unlike ``done`` they do not fall at an undo. The owner can forge the page, and everybody reads the sum: so it
        never falls, and no run adds more than its total, or than memory bandwidth allows.
        """
        run, snapshot = self._runs[task], task.snapshot()
        most = int(UNITS_PER_SECOND * max(1.0, time.monotonic() - run.began))
        total = snapshot.total or task.history.planned
        units = min(sum(each.units for each in snapshot.threads), total, most)
        self._units[_operation(task), str(task.units)] += max(0, units - run.units)
        run.units = max(run.units, units)

    async def facts(self) -> Facts:
        """The current figures; other tasks of the event loop run while many pages are read. Raises NoThread."""
        for task in list(self._runs):
            await trio.lowlevel.checkpoint()
            if task in self._runs:
                self._sample(task)
        pools = await in_thread(self._pools)
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
            durations=self._durations.copy(),
            pools=pools,
            open_handles=self._open_handles(),
            lag=trio.current_time() - before,
        )

    def _pools(self) -> tuple[Pool, ...]:
        return (*read_pools(self._kernel), *read_node_pools(self._kernel))

    async def text(self, form: Exposition) -> bytes:
        """A file with facts that are at most MAX_AGE old, shared by all opens in that time. Raises NoThread."""
        async with self._lock:
            if self._facts is None or trio.current_time() - self._taken >= MAX_AGE:
                self._facts = await self.facts()
                self._taken = trio.current_time()
                self._texts.clear()
            if form not in self._texts:
                # The import of the library takes as long as a whole mount: do it in a thread, at the first read.
                self._texts[form] = await in_thread(_render, self._facts, form)
            return self._texts[form]


class MetricsFile(TextFile):
    """A file whose modification time is that of its text, even of one like the last: monitoring considers an older file
    stale.
    """

    __slots__ = ()

    async def make(self, caller: Caller) -> TextSnapshot:
        return (await super().make(caller))._replace(changed_ns=time.time_ns())


def _render(facts: Facts, form: Exposition) -> bytes:
    from ktaskfs.control.exposition import render_openmetrics, render_prometheus

    return render_openmetrics(facts) if form is Exposition.OPENMETRICS else render_prometheus(facts)


def _operation(task: Task) -> str:
    return NO_OPERATION if task.operation is None else task.operation.name


def _is_refusal(transition: Transition) -> bool:
    """Whether a start that does not begin work has failed, and nobody has cancelled it. A refused plan is an answer."""
    task, old, new = transition.task, transition.old, transition.new
    if task.only_plans:
        return False
    if old is State.QUEUED:
        return new in (State.FAILED, State.INTERRUPTED)
    return old is State.STARTING and not task.start_cancelled
