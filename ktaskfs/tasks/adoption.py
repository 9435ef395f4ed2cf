"""Adoption: a daemon takes over the tasks of an earlier one."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.errors import KtaskfsError, NameTaken, NotPermitted
from ktaskfs.host import credentials
from ktaskfs.host.cgroups import groups_of
from ktaskfs.host.group_limits import OomKills
from ktaskfs.progress import Shape, read_requests, worker_of
from ktaskfs.tasks.log_lines import log_fields
from ktaskfs.tasks.new_worker import wait_for_end
from ktaskfs.tasks.task import ACTIVE, CANCELLABLE, EMPTY, State
from ktaskfs.tasks.worker_handle import WorkerHandle
from ktaskfs.user_threads import in_thread

if TYPE_CHECKING:
    from ktaskfs.tasks.context import TaskContext
    from ktaskfs.tasks.lifecycle import Lifecycle
    from ktaskfs.tasks.queue import TaskQueue
    from ktaskfs.tasks.record import Record
    from ktaskfs.tasks.task import Task

LOG: Final = logging.getLogger(__name__)
PATIENCE: Final = 10.0
"""Seconds for the start times of all processes. Each takes some microseconds, unless the process hangs in execve(2)."""
_NO_SHAPE: Final = Shape(0, 0)


class Adopter:
    """Enters the tasks of the state directory into the table, and watches running ones."""

    def __init__(self, context: TaskContext, lifecycle: Lifecycle, queue: TaskQueue) -> None:
        self._table = context.table
        self._state = context.state
        self._operations = context.operations
        self._nursery = context.nursery
        self._lifecycle = lifecycle
        self._cgroups = context.cgroups
        self._queue = queue

    async def adopt(self) -> None:
        """Take over every task of the state directory.

        Raises OSError if it cannot be read, and NoThread; the state directory then still has every task.
        """
        self._state.sweep_pages()
        records = list(self._state.records(self._operations))
        deadline = trio.current_time() + PATIENCE
        # Before there are tasks, so that nothing happens to one during the wait.
        processes = {
            record.origin.number: await self._open_process(record, deadline)
            for record in records
            if record.state in ACTIVE
        }
        for record in records:
            try:
                self._table.check_names([record.origin.name])
            except KtaskfsError as error:
                pidfd = processes.get(record.origin.number)
                if isinstance(error, NameTaken) and record.state in CANCELLABLE and pidfd is None:
                    # The daemon died between the records of a write with replace=1 and the removal of the old ones.
                    LOG.warning("task %s stays: the write that replaces it has begun no work", record.origin.name)
                    self._state.forget(record.origin.number)
                else:
                    self._state.set_aside(record.origin.number, error)
                if pidfd is not None:
                    os.close(pidfd)
                continue
            task = record.make_task()
            self._table.add(task)
            if task.state in ACTIVE:
                self._adopt_active(task, record, processes[record.origin.number])
            elif task.state is State.QUEUED:
                self._adopt_queued(task)
        self._state.begin_boot()
        self._table.number_from(self._state.highest_number() + 1)
        self._table.rebalance()
        self._lifecycle.drop_overdue()

    async def _open_process(self, record: Record, deadline: float) -> int | None:
        """A pidfd of the worker in ``record``, or None if it has ended. Its pid may have been reused.

        Raises OSError, NoThread.
        """
        if record.pid is None:
            return None
        try:
            pidfd = os.pidfd_open(record.pid)
        except OSError as error:
            # ESRCH: the number is unused. EINVAL, and ENOENT since Linux 6.9: it is a thread.
            if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
                return None
            raise
        with contextlib.ExitStack() as unused:
            unused.callback(os.close, pidfd)
            began = await _start_time(record.pid, deadline)
            hidden = began is None or record.start_time == 0
            if not (self._has_page(record) if hidden else began == record.start_time):
                return None
            unused.pop_all()
        return pidfd

    def _has_page(self, record: Record) -> bool:
        """Whether the process in ``record`` has the page of the task as its worker."""
        try:
            page = self._state.open_page(record.origin.number)
        except OSError:  # then the task ends
            return False
        try:
            return worker_of(page) == record.pid
        finally:
            os.close(page)

    def _adopt_active(self, task: Task, record: Record, pidfd: int | None) -> None:
        """Adopt a task that was running: its worker lives, and has ``pidfd``, or it has ended, or never began."""
        if task.state is State.STARTING:
            if pidfd is not None:
                null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)  # for the page, which is still empty
                task.worker = WorkerHandle(record.pid or 0, record.start_time or 0, pidfd, null, _NO_SHAPE)
            self._nursery.start_soon(self._end_start, task)
            return
        try:
            page = self._state.open_page(task.number)
        except OSError as error:
            message = f"the daemon ended, and its successor cannot read the worker's page: {error.strerror}"
            self._lifecycle.end(task, State.INTERRUPTED, replace(EMPTY, errno=errno.EINTR, message=message))
            if pidfd is not None:
                os.close(pidfd)
            return
        shape = record.shape or _NO_SHAPE
        if pidfd is None:
            worker = WorkerHandle(0, 0, os.open(os.devnull, os.O_RDONLY), page, shape)
            self._lifecycle.conclude(task, worker, None)
            worker.close()
            return
        if record.history.remaining is None:  # a record of an older version names no boot, but the worker has done all
            task.history = task.history._replace(boot=self._state.boot)
        task.requests = read_requests(page)
        pid = record.pid or 0
        oom_kills = OomKills.of(self._cgroups, groups_of(pid))
        task.worker = WorkerHandle(pid, record.start_time or 0, pidfd, page, shape, oom_kills=oom_kills)
        try:
            task.worker.wake()  # the daemon may have died between writing a request and waking the worker
        except NotPermitted as error:  # the worker's label has changed
            LOG.warning("task %s: %s", task.name, error.message, extra=log_fields(task))
        # It may also have died after a request for pause or cancel, before it wrote the record.
        self._table.move(task, State.PAUSED if task.requests.paused else State.RUNNING)
        LOG.info("task %s is adopted: process %d goes on", task.name, record.pid, extra=log_fields(task))
        self._lifecycle.watch(task, task.worker)

    def _adopt_queued(self, task: Task) -> None:
        """A queued task stays queued, if a worker can still become its caller."""
        if task.caller is not None and task.caller.root is not None:
            self._queue.put(task)
            return
        task.caller = None
        message = "the daemon ended while the task was queued, and the caller's root directory is lost"
        self._lifecycle.end(task, State.INTERRUPTED, replace(EMPTY, errno=errno.EINTR, message=message))

    async def _end_start(self, task: Task) -> None:
        """End a start that was unfinished when the daemon ended: its worker has not begun."""
        worker = task.worker
        if worker is not None:
            await wait_for_end(worker, self._cgroups)
        message = "the daemon ended before the work began"
        self._lifecycle.end(task, State.INTERRUPTED, replace(EMPTY, errno=errno.EINTR, message=message))
        if worker is not None:
            worker.close()


async def _start_time(pid: int, deadline: float) -> int | None:
    """The start time, as in ``credentials``; None, too, if /proc hides the process, or without an answer in time.

    The read may hang as long as the process does in execve(2). No worker calls that, so then another process has its
    number. Raises OSError, NoThread.
    """
    with contextlib.suppress(PermissionError), trio.move_on_at(deadline):
        return await in_thread(credentials.start_time, pid)
    return None
