"""What ``metrics`` counts: tasks by operation and state, ends by outcome, units, pools, and the daemon itself.

No label has a task's name, a path or a user in it: anybody may read the file, and the number of series stays small.
"""

from __future__ import annotations

from collections import Counter
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
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.tasks.table import TaskTable
    from ktaskfs.tasks.task import Task

NO_OPERATION: Final = "none"
"""The label of tasks without an operation."""


class Metrics:
    """Keeps the counters of one mount."""

    def __init__(self, table: TaskTable, kernel: Kernel, load: Callable[[], Load]) -> None:
        self._table = table
        self._kernel = kernel
        self._load = load
        self._started: Counter[tuple[str, ...]] = Counter()
        self._refused: Counter[tuple[str, ...]] = Counter()
        self._ended: Counter[tuple[str, ...]] = Counter()
        self._units: Counter[tuple[str, ...]] = Counter()

    def count(self, transition: Transition) -> None:
        """Observe a transition. A task whose end an earlier daemon saw is not counted again."""
        task, old, new = transition.task, transition.old, transition.new
        if old in WORKING and new in ENDED:
            self._ended[_operation(task), str(new)] += 1
            self._units[_operation(task), str(units_of(task))] += _worked(task)
        elif old is State.STARTING:
            (self._started if new in WORKING else self._refused)[_operation(task),] += 1

    def facts(self, lag: float) -> Facts:
        """The figures of this moment."""
        units = self._units.copy()
        for task in self._table:
            if task.state in WORKING:
                units[_operation(task), str(units_of(task))] += _worked(task)
        return Facts(
            tasks=Counter((_operation(task), str(task.state)) for task in self._table),
            started=self._started,
            refused=self._refused,
            ended=self._ended,
            units=units,
            pools=(*read_pools(self._kernel), *read_node_pools(self._kernel)),
            load=self._load(),
            lag=lag,
        )

    async def text(self) -> str:
        """The file."""
        # On a thread, and at the first read only: the library takes as long to import as a whole mount.
        render = await trio.to_thread.run_sync(_renderer)
        before = trio.current_time()
        await trio.lowlevel.checkpoint()
        return render(self.facts(trio.current_time() - before))


def _renderer() -> Callable[[Facts], str]:
    from ktaskfs.control.openmetrics import render

    return render


def _operation(task: Task) -> str:
    return NO_OPERATION if task.operation is None else task.operation.name


def _worked(task: Task) -> int:
    """Units that the threads of this run have done. Unlike ``done`` this number never falls when a task is undone."""
    return sum(each.units for each in task.snapshot().threads)
