"""The life of running tasks: their ends and their records."""

from __future__ import annotations

import errno
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.errors import KtaskfsError, TargetError
from ktaskfs.progress import Phase, read_result, read_snapshot
from ktaskfs.tasks.log_lines import log_end, log_fields, subject
from ktaskfs.tasks.record import Record
from ktaskfs.tasks.task import EMPTY, PHASE_STATES, State, Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ktaskfs.progress import Snapshot
    from ktaskfs.tasks.context import TaskContext
    from ktaskfs.tasks.worker_handle import WorkerHandle

LOG: Final = logging.getLogger(__name__)
TAKEN_BACK_AT_ONCE: Final = 16
"""Tasks of a refused write that are removed without a pause."""


class StartCancelled(KtaskfsError):
    """The task was cancelled during its preparation (ECANCELED)."""

    default_errno = errno.ECANCELED


class Lifecycle:
    """Keeps tasks and their records together, and watches workers."""

    def __init__(self, context: TaskContext) -> None:
        self._table = context.table
        self._launcher = context.launcher
        self._state = context.state
        self._nursery = context.nursery
        self._concluding = trio.Lock()
        """Of many workers that end at once one is concluded at a time, so that requests come in between."""
        context.table.settings.observers.append(self.drop_overdue)

    def record(self, task: Task) -> None:
        """Write the record of ``task``. Raises TargetError: the next daemon would read the old record."""
        try:
            self._state.write(Record.of(task))
        except OSError as error:
            raise TargetError.from_os(error, f"write the record of task {task.name}") from error

    def save(self, task: Task) -> bool:
        """As ``record``, but an error is only logged. Returns whether there was none."""
        try:
            self.record(task)
        except TargetError as error:
            LOG.error("%s", error.message)
            return False
        return True

    def move(self, task: Task, state: State) -> bool:
        """Change the state of a task, and write its record; False as for ``save``."""
        self._table.move(task, state)
        return self.save(task)

    def drop(self, *tasks: Task) -> None:
        """Remove ``tasks`` and their records."""
        self._table.drop(*tasks)
        for task in tasks:
            try:
                self._state.forget(task.number)
            except OSError as error:
                LOG.error("cannot remove the record of task %s: %s", task.name, error)

    async def take_back(self, tasks: Sequence[Task], replaced: Mapping[str, Task]) -> None:
        """Remove the ``tasks`` of a refused write, and put the tasks that they ``replaced`` back, by name; a few at a
        time."""
        for first in range(0, len(tasks), TAKEN_BACK_AT_ONCE):
            some = tasks[first : first + TAKEN_BACK_AT_ONCE]
            for task in some:
                if task.caller is not None:
                    task.caller.close()
                    task.caller = None
            self.drop(*some)
            for task in some:
                if task.name in replaced:
                    self._table.put_back(replaced[task.name])
            await trio.lowlevel.checkpoint()

    def drop_overdue(self) -> None:
        """Remove ended tasks beyond those that are kept."""
        self.drop(*self._table.overdue())

    def begin(self, task: Task, worker: WorkerHandle) -> None:
        """The worker of a task got GO: log it, and watch the worker."""
        assert task.operation is not None
        LOG.info(
            "task %s: %s by user %d, process %d",
            task.name,
            subject(task),
            task.uid,
            worker.pid,
            extra=log_fields(task, KTASK_PID=worker.pid),
        )
        self.watch(task, worker)

    def watch(self, task: Task, worker: WorkerHandle) -> None:
        """Start a background task that waits for the end of a worker."""
        self._nursery.start_soon(self._watch, task, worker)

    async def _watch(self, task: Task, worker: WorkerHandle) -> None:
        await trio.lowlevel.wait_readable(worker.pidfd)
        # The exit status explains a worker's death. If the page has the outcome, do not wait for the spawner.
        ended = _tells_its_end(worker)
        status = None if ended else await self._launcher.exit_status(worker.ticket)
        async with self._concluding:
            try:
                self.conclude(task, worker, status)
            except Exception:
                # A bug must not end the daemon, because others' tasks depend on it.
                LOG.exception("the end of task %s", task.name)
                task.worker = None
        worker.close()  # after nothing shows it
        if ended:
            await self._launcher.exit_status(worker.ticket)

    def conclude(self, task: Task, worker: WorkerHandle, status: int | None) -> None:
        """Find the outcome of a worker; ``status`` is from waitpid(2), None if unknown."""
        self._state.crash_point("the worker has ended")
        try:
            final = read_snapshot(worker.page, worker.shape)
            result = read_result(worker.page, worker.shape, final).encode()
        except OSError as error:
            LOG.error("cannot read the page of task %s: %s", task.name, error)
            final, result = EMPTY, b""
        state = PHASE_STATES.get(final.phase, State.INTERRUPTED)
        if state is State.DONE and task.only_plans:
            state = State.PLANNED
        if state is State.INTERRUPTED:
            left = final.remaining()
            final = replace(
                final,
                ended_ns=final.ended_ns or time.clock_gettime_ns(time.CLOCK_BOOTTIME),
                errno=errno.EINTR,
                error_position=left[0].start if left else 0,
                message=f"the worker died{worker.ending_text(status)}",
            )
            result = b""
        self.end(task, state, final, result)

    def end(self, task: Task, state: State, final: Snapshot, result: bytes = b"") -> None:
        """Record the end of a task, with or without a worker."""
        task.history = task.history._replace(final=final, result=result)
        task.worker = None
        saved = self.move(task, state)
        try:
            if saved:
                self._state.forget_page(task.number)
            else:  # the next daemon needs the page, but must not start a task that was queued
                self._state.forget_queued(task.number)
        except OSError as error:
            LOG.error("cannot remove the %s of task %s: %s", "page" if saved else "record", task.name, error)
        log_end(LOG, task, state, final)
        self.drop_overdue()

    def refuse_late(self, task: Task, error: KtaskfsError) -> None:
        """Record that the start of a task failed after its write had succeeded."""
        cancelled = isinstance(error, StartCancelled)
        final = replace(EMPTY, phase=Phase.FAILED, errno=error.errno, message=error.message)
        self.end(task, State.CANCELLED if cancelled else State.FAILED, final)


def _tells_its_end(worker: WorkerHandle) -> bool:
    """Whether the page has the worker's outcome."""
    try:
        return read_snapshot(worker.page, worker.shape).phase in PHASE_STATES
    except OSError:  # ``conclude`` logs it
        return False
