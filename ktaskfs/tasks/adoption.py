"""What a daemon takes over from an earlier one."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import KtaskfsError
from ktaskfs.host import credentials
from ktaskfs.progress import Shape, read_requests
from ktaskfs.tasks.lifecycle import Lifecycle, log_fields
from ktaskfs.tasks.recruit import see_off
from ktaskfs.tasks.task import ACTIVE, EMPTY, State, Task, WorkerHandle

if TYPE_CHECKING:
    from collections.abc import Mapping

    import trio

    from ktaskfs.operations.base.operation import Operation
    from ktaskfs.tasks.record import Record, StateDirectory
    from ktaskfs.tasks.table import TaskTable

LOG: Final = logging.getLogger(__name__)


class Adopter:
    """Brings the tasks that the state directory knows into ``table``, and watches those that are at work."""

    def __init__(
        self,
        table: TaskTable,
        state: StateDirectory,
        operations: Mapping[str, Operation[Any]],
        lifecycle: Lifecycle,
        nursery: trio.Nursery,
    ) -> None:
        self._table = table
        self._state = state
        self._operations = operations
        self._lifecycle = lifecycle
        self._nursery = nursery

    def adopt(self) -> None:
        """Take over every task that the state directory knows. Raises OSError if it cannot be read."""
        self._state.sweep_pages()
        for record in self._state.records():
            try:
                task = Task.from_record(record, self._operations)
                self._table.check_names([task.name])
            except (KtaskfsError, ValueError) as error:
                self._state.set_aside(record.task, error)
                continue
            self._table.add(task)
            if task.state in ACTIVE:
                self._adopt_active(task, record)
        self._table.number_from(self._state.highest_number() + 1)
        self._table.rebalance()
        self._lifecycle.drop_overdue()

    def _adopt_active(self, task: Task, record: Record) -> None:
        """A task that was at work: its worker lives on, or has ended meanwhile, or had never begun."""
        if task.state is State.STARTING:
            pidfd = _open_process(record)
            if pidfd is not None:
                null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)  # for the page, which says nothing yet
                task.worker = WorkerHandle(record.pid or 0, record.start_time or 0, pidfd, null, Shape(0, 0))
            self._nursery.start_soon(self._end_start, task)
            return
        try:
            page = os.open(self._state.page_path(task.number), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            message = f"the daemon ended, and the worker's page cannot be read: {error.strerror}"
            self._lifecycle.end(task, State.INTERRUPTED, replace(EMPTY, errno=errno.EINTR, message=message))
            return
        shape = Shape(*(record.shape or (0, 0)))
        pidfd = _open_process(record)
        if pidfd is None:
            worker = WorkerHandle(0, 0, os.open(os.devnull, os.O_RDONLY), page, shape)
            self._lifecycle.conclude(task, worker, None)
            worker.close()
            return
        task.requests = read_requests(page)
        task.worker = WorkerHandle(record.pid or 0, record.start_time or 0, pidfd, page, shape)
        task.worker.wake()  # the daemon may have died between writing a wish and saying so
        # Or between asking for a pause, or for its end, and writing that down.
        self._table.move(task, State.PAUSED if task.requests.paused else State.RUNNING)
        LOG.info("task %s is adopted: process %d goes on", task.name, record.pid, extra=log_fields(task))
        self._lifecycle.watch(task, task.worker)

    async def _end_start(self, task: Task) -> None:
        """A start whose write was answered before the end of it, and of the daemon: the worker has not begun."""
        worker = task.worker
        if worker is not None:
            await see_off(worker.pid, worker.pidfd)
        message = "the daemon ended before the work began"
        self._lifecycle.end(task, State.INTERRUPTED, replace(EMPTY, errno=errno.EINTR, message=message))
        if worker is not None:
            worker.close()


def _open_process(record: Record) -> int | None:
    """A pidfd of the worker in ``record``, or None if that very process has ended (its pid may be another's)."""
    if record.pid is None:
        return None
    try:
        pidfd = os.pidfd_open(record.pid)
    except OSError as error:
        # Nobody has the number; or a thread has it, which Linux says with EINVAL, and since 6.9 with ENOENT.
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
            return None
        raise
    if credentials.start_time(record.pid) != record.start_time:
        os.close(pidfd)
        return None
    return pidfd
