"""Tasks with queue=1 that wait for a free place of their user; each user's begin in the order of their specs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ktaskfs.errors import KtaskfsError
from ktaskfs.tasks.lifecycle import StartCancelled
from ktaskfs.tasks.task import ENDED

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.tasks.context import TaskContext
    from ktaskfs.tasks.kept_caller import KeptCaller
    from ktaskfs.tasks.lifecycle import Lifecycle
    from ktaskfs.tasks.task import Task


class TaskQueue:
    """The queued tasks of all users. ``start`` begins one without waiting; it gets the kept caller, also opened."""

    def __init__(
        self, context: TaskContext, lifecycle: Lifecycle, start: Callable[[Task, KeptCaller, CallerProcess], None]
    ) -> None:
        self._table = context.table
        self._nursery = context.nursery
        self._lifecycle = lifecycle
        self._start = start
        self._users: dict[int, dict[Task, None]] = {}
        """By uid, the queued tasks in the order of their specs."""
        self._coming = False
        context.table.observers.append(self._changed)
        context.table.settings.observers.append(self.advance)

    def put(self, task: Task) -> None:
        """Begin a QUEUED task as soon as there is room; without a ``caller``, it was cancelled before."""
        if task.caller is None:
            self._end(task)
            return
        self._users.setdefault(task.uid, {})[task] = None
        self.advance()

    def waits(self, uid: int) -> bool:
        """Whether ``uid`` has a task in the queue."""
        return uid in self._users

    def cancel(self, task: Task, *, answered: bool) -> None:
        """End a QUEUED task, which can then be resumed. If its write is not ``answered``, ``put`` ends it."""
        caller, task.caller = task.caller, None
        if caller is not None:
            caller.close()
        if answered:
            self._end(task)

    def _end(self, task: Task) -> None:
        self._lifecycle.refuse_late(task, StartCancelled("cancelled while it was queued"))

    def _changed(self, task: Task) -> None:
        if task.state in ENDED or task.forgotten:
            self._remove(task)
            self.advance()

    def _remove(self, task: Task) -> None:
        waiting = self._users.get(task.uid, {})
        waiting.pop(task, None)
        if not waiting:
            self._users.pop(task.uid, None)

    def advance(self) -> None:
        """Check for room soon, after the current change of the table."""
        if self._users and not self._coming:
            self._coming = True
            self._nursery.start_soon(self._advance)

    async def _advance(self) -> None:
        self._coming = False
        for uid in list(self._users):
            while (waiting := self._users.get(uid)) and self._table.has_room(uid, 1):
                task = next(iter(waiting))
                self._remove(task)
                self._begin(task)
                await trio.lowlevel.checkpoint()  # each start visits all running tasks

    def _begin(self, task: Task) -> None:
        caller, task.caller = task.caller, None
        assert caller is not None
        try:
            process = caller.open()
        except KtaskfsError as error:
            self._lifecycle.refuse_late(task, error)
        else:
            self._start(task, caller, process)
