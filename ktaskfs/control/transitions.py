"""Reports every state change of a task to observers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.tasks.table import TaskTable
    from ktaskfs.tasks.task import State, Task


class Transition(NamedTuple):
    """``task`` changed from ``old`` to ``new``. ``old`` is None for a new task, ``new`` is None for a removed one.

    A task that is set aside counts as removed, though not ``forgotten``; if it is put back, it counts as new.
    """

    task: Task
    old: State | None
    new: State | None


class Transitions:
    """Observes ``table``, and calls ``observers`` with each transition after it has happened."""

    def __init__(self, table: TaskTable) -> None:
        self.observers: list[Callable[[Transition], None]] = []
        self._table = table
        self._states: dict[Task, State] = {}
        table.observers.append(self._changed)

    def _changed(self, task: Task) -> None:
        old = self._states.get(task)
        new = task.state if task in self._table else None
        if new is None:
            self._states.pop(task, None)
        else:
            self._states[task] = new
        if new is not old:
            transition = Transition(task, old, new)
            for observer in self.observers:
                observer(transition)
