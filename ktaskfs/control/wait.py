"""The stream ``tasks/NAME/wait``: follows a task to its end."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.control import task_text
from ktaskfs.tasks.task import ENDED
from ktaskfs.vfs import Stream

if TYPE_CHECKING:
    from ktaskfs.tasks.task import Task
    from ktaskfs.vfs import Change, Portions

INTERVAL: Final = 0.95
"""Seconds between lines: a little less than the second that a read may take."""


class WaitStream(Stream):
    """A progress line each second; at the end one line with the average speed, and one with the final state.

    It also waits for a task that has not started. Raises TaskForgotten if the task is removed before its end.
    """

    def __init__(self, task: Task, uid: int, change: Change, portions: Portions) -> None:
        """``change`` is notified of each change of the task's state; ``portions`` then wake the reader, ``uid``."""
        self._task = task
        self._uid = uid
        self._change = change
        self._portions = portions
        self._over = False

    async def next_chunk(self) -> bytes:
        task = self._task
        if self._over:
            return b""
        deadline = trio.current_time() + INTERVAL
        with trio.move_on_at(deadline):
            while not self.ready():
                changed = trio.Event()
                self._change.await_next(self, functools.partial(self._portions.wake, self._uid, changed))
                await changed.wait()
        if task.state in ENDED:
            self._over = True
            snapshot = task.snapshot()
            line = task_text.progress_line(task, snapshot) if snapshot.started_ns else ""
            return f"{line}{task.state}\n".encode()
        task.require_known()
        return task_text.progress_line(task, task.snapshot()).encode()

    def idle(self) -> bytes:
        return b"" if self._task.forgotten else task_text.progress_line(self._task, self._task.snapshot()).encode()

    def ready(self) -> bool:
        return self._over or self._task.state in ENDED or self._task.forgotten

    def close(self) -> None:
        self._change.forget(self)
