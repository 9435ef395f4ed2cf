"""What can be done to tasks: create, start, cancel, kill, pause, resume, forget; and what a daemon takes over."""

from __future__ import annotations

import errno
import logging
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import trio

from ktaskfs.errors import KtaskfsError, WrongState
from ktaskfs.host import credentials
from ktaskfs.operations.parameters import format_parameters
from ktaskfs.progress import Phase, Requests, Shape, read_requests, read_result, read_snapshot
from ktaskfs.tasks.paths import absolute_paths
from ktaskfs.tasks.starter import StartCancelled, Starter, ending_text, see_off
from ktaskfs.tasks.task import ACTIVE, EMPTY, PHASE_STATES, RESUMABLE, State, Task, Worker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ktaskfs.host.credentials import Caller
    from ktaskfs.operations.operation import Operation
    from ktaskfs.progress import Snapshot
    from ktaskfs.tasks.launcher import Launcher
    from ktaskfs.tasks.record import Record, StateDirectory
    from ktaskfs.tasks.spec import Spec
    from ktaskfs.tasks.table import TaskTable
    from ktaskfs.tasks.task import History

LOG: Final = logging.getLogger(__name__)


class TaskService:
    """The life of the tasks in ``table``; everything runs on the trio thread, in ``nursery`` where it goes on.

    What takes a Caller takes it over, and closes its descriptors.
    """

    def __init__(
        self,
        table: TaskTable,
        launcher: Launcher,
        state: StateDirectory,
        operations: Mapping[str, Operation[Any]],
        nursery: trio.Nursery,
    ) -> None:
        self.table = table
        self.operations = operations
        self._launcher = launcher
        self._state = state
        self._nursery = nursery
        self._starter = Starter(table, launcher, state, nursery, began=self._begin_watch, failed_late=self._refuse_late)
        table.settings.observers.append(self._drop_overdue)

    async def run_specs(self, caller: Caller, specs: Sequence[Spec]) -> list[Task]:
        """Create a task for each spec and start them, all or none; returns when their targets are reserved.

        Raises KtaskfsError: NameTaken, TooManyTasks, or the target's own error; nothing is then left of them.
        """
        uid, gid = caller.identity.uid, caller.identity.gid
        tasks = []
        try:
            self.table.check_room(uid, len(specs))
            names = [spec.parameters.name for spec in specs if spec.parameters.name is not None]
            self.table.check_names(names)
            taken = set(names)
            for spec in specs:
                number = self.table.next_number()
                name = spec.parameters.name or self.table.free_name(spec.operation.name, number, taken)
                task = Task(number, name, uid, gid)
                task.define(spec.operation, absolute_paths(spec.operation, format_parameters(spec.parameters), caller))
                self.table.add(task)
                tasks.append(task)
        except KtaskfsError:
            caller.close()
            raise
        try:
            await self._start(tasks, caller)
        except KtaskfsError:
            for task in tasks:
                self._drop(task)
            raise
        self.table.note_last(uid, [task.name for task in tasks])
        return tasks

    def create_empty(self, name: str, uid: int, gid: int) -> Task:
        """A task that does nothing yet. Raises NameTaken, InvalidValue, TooManyTasks."""
        self.table.check_room(uid, 1)
        self.table.check_names([name])
        task = Task(self.table.next_number(), name, uid, gid)
        self.table.add(task)
        self.save(task)
        return task

    async def start(self, task: Task, caller: Caller) -> None:
        """Start a task that is new. Raises WrongState, InvalidValue, or the target's error; it is then still new."""
        try:
            task.require({State.NEW}, "start")
            task.parsed()
        except KtaskfsError:
            caller.close()
            raise
        await self._start_again(task, caller, task.history)

    async def resume(self, task: Task, caller: Caller) -> None:
        """Go on: a paused task at once, an ended one with a new worker that does the rest only. Raises WrongState."""
        if task.state is State.PAUSED:
            caller.close()
            task.ask(replace(task.requests, paused=False))
            self._move(task, State.RUNNING)
            return
        try:
            task.require(RESUMABLE, "resume")
            self.table.check_room(task.uid, 1)
        except KtaskfsError:
            caller.close()
            raise
        before = task.history
        final = task.final or EMPTY
        task.base = task.done(final)
        if final.nodes:
            task.remaining = [(span.start, span.end, span.nid) for span in final.remaining()]
            task.planned = sum(end - start for start, end, _ in task.remaining)
        task.final, task.result = None, ""  # an earlier run's: it must not be counted beside ``base``
        await self._start_again(task, caller, before)

    async def _start_again(self, task: Task, caller: Caller, history: History) -> None:
        """Start one task; if it may not begin it is as it was, with ``history``."""
        before = task.state
        assert task.operation is not None
        task.texts = absolute_paths(task.operation, task.texts, caller)
        try:
            await self._start([task], caller)
        except KtaskfsError:
            task.history = history
            self._move(task, before)
            raise

    async def _start(self, tasks: Sequence[Task], caller: Caller) -> None:
        for task in tasks:
            task.requests = Requests(rate=task.rate_limit(), nice=self.table.nice_of(task))
            self.table.move(task, State.STARTING)
        await self._starter.start(tasks, caller)

    def cancel(self, task: Task) -> None:
        """Have the work end after the chunks in flight. Raises WrongState."""
        task.require(ACTIVE, "cancel")
        if task.state is State.STARTING:
            self._starter.cancel(task)
        else:
            task.ask(replace(task.requests, cancel=True, paused=False))

    def kill(self, task: Task) -> None:
        """SIGKILL the worker, even in the middle of a chunk. Raises WrongState."""
        task.require(ACTIVE, "kill")
        if task.state is State.STARTING:
            self._starter.kill(task)
        elif task.worker is not None:
            task.worker.signal(signal.SIGKILL)

    def pause(self, task: Task) -> None:
        """Hand out no further chunk until ``resume``. Raises WrongState."""
        task.require({State.RUNNING}, "pause")
        task.ask(replace(task.requests, paused=True))
        self._move(task, State.PAUSED)

    def set_live(self, task: Task) -> None:
        """Put changed ``max_threads``, ``nice`` and ``rate_max`` of a task in force."""
        task.require_known()
        task.ask(replace(task.requests, rate=task.rate_limit()))
        self.table.rebalance()
        self.save(task)

    def forget(self, task: Task) -> None:
        """Drop a task that is not at work, nor about to be. Raises WrongState."""
        if task.state in ACTIVE:
            raise WrongState(f"task {task.name} is {task.state}: cancel it first")
        self._drop(task)

    def _drop(self, task: Task) -> None:
        self.table.drop(task)
        try:
            self._state.forget(task.number)
        except OSError as error:
            LOG.error("the record of task %s cannot be removed: %s", task.name, error)

    def _drop_overdue(self) -> None:
        for old in self.table.overdue():
            self._drop(old)

    def save(self, task: Task) -> bool:
        """Write the record of ``task``. Where the state directory fails, False: a restart would know the old one."""
        try:
            self._state.write(task.record())
        except OSError as error:
            LOG.error("the record of task %s cannot be written: %s", task.name, error)
            return False
        return True

    def _move(self, task: Task, state: State) -> bool:
        self.table.move(task, state)
        return self.save(task)

    # ---- the end of a task ----

    def _begin_watch(self, task: Task, worker: Worker) -> None:
        assert task.operation is not None
        LOG.info(
            "task %s: %s by user %d, process %d",
            task.name,
            task.operation.name,
            task.uid,
            worker.pid,
            extra=_fields(task),
        )
        self._nursery.start_soon(self._watch, task, worker)

    async def _watch(self, task: Task, worker: Worker) -> None:
        """Wait for the end of a worker and find out what it came to."""
        await trio.lowlevel.wait_readable(worker.pidfd)
        status = await self._launcher.exit_status(worker.ticket)
        try:
            self._conclude(task, worker, status)
        except Exception:
            # A bug must not end the daemon, which others' tasks depend on.
            LOG.exception("the end of task %s", task.name)
            task.worker = None
        worker.close()  # when nothing shows it any more

    def _conclude(self, task: Task, worker: Worker, status: int | None) -> None:
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
                errno=errno.EINTR,
                error_position=left[0].start if left else 0,
                message=f"the worker died{ending_text(status)}",
            )
        else:
            task.result = result
        self._end(task, state, final)

    def _end(self, task: Task, state: State, final: Snapshot) -> None:
        task.final = final
        task.worker = None
        if self._move(task, state):  # else a successor needs the page
            try:
                self._state.forget_page(task.number)
            except OSError as error:
                LOG.error("the page of task %s cannot be removed: %s", task.name, error)
        LOG.info(
            "task %s is %s%s", task.name, state, f": {final.message}" if final.message else "", extra=_fields(task)
        )
        self._drop_overdue()

    def _refuse_late(self, task: Task, error: KtaskfsError) -> None:
        """The start of a task failed after the write that asked for it was answered with success."""
        cancelled = isinstance(error, StartCancelled)
        final = replace(EMPTY, phase=Phase.FAILED, errno=error.errno, message=error.message)
        self._end(task, State.CANCELLED if cancelled else State.FAILED, final)

    # ---- taking over from an earlier daemon ----

    def adopt(self) -> None:
        """Take over every task that the state directory knows. Raises OSError if it cannot be read."""
        self._state.sweep_pages()
        for record in self._state.records():
            try:
                task = Task.from_record(record, self.operations)
                self.table.check_names([task.name])
            except (KtaskfsError, ValueError) as error:
                self._state.set_aside(record.task, error)
                continue
            self.table.add(task)
            if task.state in ACTIVE:
                self._adopt_active(task, record)
        self.table.number_from(self._state.highest_number() + 1)
        self.table.rebalance()
        self._drop_overdue()

    def _adopt_active(self, task: Task, record: Record) -> None:
        """A task that was at work: its worker lives on, or has ended meanwhile, or had never begun."""
        if task.state is State.STARTING:
            self._nursery.start_soon(self._end_start, task, record.pid, _open_process(record))
            return
        try:
            page = os.open(self._state.page_path(task.number), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            message = f"the daemon ended, and the worker's page cannot be read: {error.strerror}"
            self._end(task, State.INTERRUPTED, replace(EMPTY, errno=errno.EINTR, message=message))
            return
        shape = Shape(*(record.shape or (0, 0)))
        pidfd = _open_process(record)
        if pidfd is None:
            worker = Worker(0, 0, os.open(os.devnull, os.O_RDONLY), page, shape)
            self._conclude(task, worker, None)
            worker.close()
            return
        task.requests = read_requests(page)
        task.worker = Worker(record.pid or 0, record.start_time or 0, pidfd, page, shape)
        # The daemon may have died between asking for a pause, or for its end, and writing that down.
        self.table.move(task, State.PAUSED if task.requests.paused else State.RUNNING)
        LOG.info("task %s is adopted: process %d goes on", task.name, record.pid, extra=_fields(task))
        self._nursery.start_soon(self._watch, task, task.worker)

    async def _end_start(self, task: Task, pid: int | None, pidfd: int | None) -> None:
        """A start whose write was answered before the end of it, and of the daemon: the worker has not begun."""
        if pid is not None and pidfd is not None:
            await see_off(pid, pidfd)
            os.close(pidfd)
        message = "the daemon ended before the work began"
        self._end(task, State.INTERRUPTED, replace(EMPTY, errno=errno.EINTR, message=message))


def _fields(task: Task) -> dict[str, object]:
    """What a log that has fields is to know of a line beside its words (``ktaskfs.systemd.FIELDS``)."""
    return {"TASK": task.name, "OP": task.operation.name if task.operation else "", "UID": task.uid}


def _open_process(record: Record) -> int | None:
    """A pidfd of the worker in ``record``, or None if that very process has ended (its pid may be another's)."""
    if record.pid is None:
        return None
    try:
        pidfd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return None
    if credentials.start_time(record.pid) != record.start_time:
        os.close(pidfd)
        return None
    return pidfd
