"""The life of tasks at work: how each ends, and what its record says."""

from __future__ import annotations

import errno
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.progress import Phase, read_result, read_snapshot
from ktaskfs.tasks.recruit import ending_text
from ktaskfs.tasks.starter import StartCancelled
from ktaskfs.tasks.task import EMPTY, PHASE_STATES, State, Task, WorkerHandle

if TYPE_CHECKING:
    from ktaskfs.errors import KtaskfsError
    from ktaskfs.progress import Snapshot
    from ktaskfs.tasks.launcher import Launcher
    from ktaskfs.tasks.record import StateDirectory
    from ktaskfs.tasks.table import TaskTable

LOG: Final = logging.getLogger(__name__)


class Lifecycle:
    """Keeps the tasks of ``table`` and their records together; watches workers in ``nursery``."""

    def __init__(self, table: TaskTable, launcher: Launcher, state: StateDirectory, nursery: trio.Nursery) -> None:
        self._table = table
        self._launcher = launcher
        self._state = state
        self._nursery = nursery
        table.settings.observers.append(self.drop_overdue)

    def save(self, task: Task) -> bool:
        """Write the record of ``task``. Where the state directory fails, False: a restart would know the old one."""
        try:
            self._state.write(task.record())
        except OSError as error:
            LOG.error("the record of task %s cannot be written: %s", task.name, error)
            return False
        return True

    def move(self, task: Task, state: State) -> bool:
        """Bring a task to another state, and write its record; False as for ``save``."""
        self._table.move(task, state)
        return self.save(task)

    def drop(self, task: Task) -> None:
        """Remove a task and its record."""
        self._table.drop(task)
        try:
            self._state.forget(task.number)
        except OSError as error:
            LOG.error("the record of task %s cannot be removed: %s", task.name, error)

    def drop_overdue(self) -> None:
        """Remove ended tasks beyond those that are kept."""
        for old in self._table.overdue():
            self.drop(old)

    def begin(self, task: Task, worker: WorkerHandle) -> None:
        """The worker of a task was let go: log it, and wait for its end."""
        assert task.operation is not None
        LOG.info(
            "task %s: %s by user %d, process %d",
            task.name,
            task.operation.name,
            task.uid,
            worker.pid,
            extra=log_fields(task),
        )
        self.watch(task, worker)

    def watch(self, task: Task, worker: WorkerHandle) -> None:
        """Wait for the end of a worker."""
        self._nursery.start_soon(self._watch, task, worker)

    async def _watch(self, task: Task, worker: WorkerHandle) -> None:
        await trio.lowlevel.wait_readable(worker.pidfd)
        status = await self._launcher.exit_status(worker.ticket)
        try:
            self.conclude(task, worker, status)
        except Exception:
            # A bug must not end the daemon, which others' tasks depend on.
            LOG.exception("the end of task %s", task.name)
            task.worker = None
        worker.close()  # when nothing shows it any more

    def conclude(self, task: Task, worker: WorkerHandle, status: int | None) -> None:
        """Find out what an ended worker came to; ``status`` is what waitpid(2) told, if anything."""
        self._state.step("the worker has ended")
        try:
            final = read_snapshot(worker.page, worker.shape)
            result = read_result(worker.page, worker.shape, final)
        except OSError as error:
            LOG.error("the page of task %s cannot be read: %s", task.name, error)
            final, result = EMPTY, ""
        state = PHASE_STATES.get(final.phase, State.INTERRUPTED)
        if state is State.INTERRUPTED:
            left = final.remaining()
            final = replace(
                final,
                ended_ns=final.ended_ns or time.clock_gettime_ns(time.CLOCK_BOOTTIME),
                errno=errno.EINTR,
                error_position=left[0].start if left else 0,
                message=f"the worker died{ending_text(status)}",
            )
        else:
            task.result = result
        self.end(task, state, final)

    def end(self, task: Task, state: State, final: Snapshot) -> None:
        """A task has ended so, whether or not it had a worker."""
        task.final = final
        task.worker = None
        if self.move(task, state):  # else a successor needs the page
            try:
                self._state.forget_page(task.number)
            except OSError as error:
                LOG.error("the page of task %s cannot be removed: %s", task.name, error)
        LOG.info(
            "task %s is %s%s", task.name, state, f": {final.message}" if final.message else "", extra=log_fields(task)
        )
        self.drop_overdue()

    def refuse_late(self, task: Task, error: KtaskfsError) -> None:
        """The start of a task failed after the write that asked for it was answered with success."""
        cancelled = isinstance(error, StartCancelled)
        final = replace(EMPTY, phase=Phase.FAILED, errno=error.errno, message=error.message)
        self.end(task, State.CANCELLED if cancelled else State.FAILED, final)


def log_fields(task: Task) -> dict[str, object]:
    """What a log that has fields is to know of a line beside its words (``ktaskfs.systemd.FIELDS``)."""
    return {"TASK": task.name, "OP": task.operation.name if task.operation else "", "UID": task.uid}
