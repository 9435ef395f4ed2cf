"""The stream ``tasks/NAME/wait``: follows a task to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.control import task_text
from ktaskfs.tasks.task import ENDED
from ktaskfs.vfs import Stream

if TYPE_CHECKING:
    from ktaskfs.progress import Snapshot
    from ktaskfs.tasks.task import Task

INTERVAL: Final = 0.95
"""Seconds between lines: a little less than the second that a read may take."""


class WaitStream(Stream):
    """A progress line each second; at the end one line with the average speed, and one with the final state.

    It waits for a task that has not started, too. It raises TaskForgotten if the task is removed before its end.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._over = False
        self._last: tuple[float, int] | None = None

    async def next_chunk(self) -> bytes:
        task = self._task
        if self._over:
            return b""
        deadline = trio.current_time() + INTERVAL
        with trio.move_on_at(deadline):
            while not self.ready():
                await task.changed()
        if task.state in ENDED:
            self._over = True
            snapshot = task.snapshot()
            line = task_text.progress_line(task, snapshot, task_text.speed(snapshot)) if snapshot.started_ns else ""
            return f"{line}{task.state}\n".encode()
        task.require_known()
        return self._line(task.snapshot())

    def _line(self, snapshot: Snapshot) -> bytes:
        now, done = trio.current_time(), snapshot.done
        if self._last is None or now <= self._last[0]:
            rate = task_text.speed(snapshot)
        else:
            rate = (done - self._last[1]) / (now - self._last[0])
        self._last = now, done
        return task_text.progress_line(self._task, snapshot, max(0.0, rate)).encode()

    def idle(self) -> bytes:
        return b"" if self._task.forgotten else self._line(self._task.snapshot())

    def ready(self) -> bool:
        return self._over or self._task.state in ENDED or self._task.forgotten

    def close(self) -> None:
        """Nothing is held."""
