"""Starts workers: all tasks of one write get a ready worker, or none begins."""

from __future__ import annotations

import errno
import logging
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.errors import KtaskfsError, TargetError, WorkerLost
from ktaskfs.tasks.lifecycle import Lifecycle, StartCancelled
from ktaskfs.tasks.log_lines import log_refusal
from ktaskfs.tasks.new_worker import NewWorker, WorkerMaker, wait_for_end
from ktaskfs.tasks.patience import patience
from ktaskfs.tasks.record import Record
from ktaskfs.tasks.task import State, Task
from ktaskfs.worker import protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.tasks.context import TaskContext

LOG: Final = logging.getLogger(__name__)
PATIENCE: Final = 0.9
"""Seconds for which a start waits for its target: no request may block much longer."""
GRACE: Final = 0.5
"""Seconds for which a refused write waits for the workers' undo."""


class StartRefused(KtaskfsError):
    """None of several tasks may begin; errno and message are those of the failed ``task``."""

    def __init__(self, error: KtaskfsError, task: Task) -> None:
        super().__init__(error.message, errno=error.errno)
        self.task = task


@dataclass
class _Batch:
    """Tasks that start together. ``caller_waits`` until the answer to their write.

    early:   that answer came before they began, so they have records.
    workers: the workers forked until now, in the order of their tasks.
    lost:    the ticket of a later one, whose fork was given up while it began to prepare, if there is one.
    check:   called before the first worker is forked; its KtaskfsError is why no task begins.
    commit:  called when all have records; its TargetError is why no task begins.
    refusal: why the answer to their write is an error, if that was found out meanwhile.
    error:   why no task begins, once known.
    failed:  the task whose preparation failed, if any.
    decided: the tasks have begun, or there is an error.
    over:    the tasks have begun, or their workers are gone.
    """

    tasks: Sequence[Task]
    caller: CallerProcess
    workers: list[NewWorker] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    caller_waits: bool = True
    early: bool = False
    check: Callable[[], Awaitable[None]] | None = None
    commit: Callable[[], None] = lambda: None
    refusal: KtaskfsError | None = None
    error: KtaskfsError | None = None
    failed: Task | None = None
    decided: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)


class Starter:
    """Brings tasks from STARTING to RUNNING, and hands them over to ``lifecycle``.

    A start that takes longer than its write may wait is answered with success; its tasks then have a record, and an
    error ends them.
    """

    def __init__(self, context: TaskContext, lifecycle: Lifecycle) -> None:
        self._table = context.table
        self._launcher = context.launcher
        self._state = context.state
        self._nursery = context.nursery
        self._lifecycle = lifecycle
        self._cgroups = context.cgroups
        self._worker_maker = WorkerMaker(context)
        self._batches: dict[Task, _Batch] = {}
        """By task, from its start until the end of the batch."""

    async def start(
        self, tasks: Sequence[Task], caller: CallerProcess, commit: Callable[[], None] = lambda: None
    ) -> None:
        """Start ``tasks``, which are STARTING; takes over ``caller``, whose descriptors it closes.

        Returns when all have begun, or after PATIENCE, when some are still STARTING. Raises KtaskfsError if none
        may begin, StartRefused for several; the caller of this method then restores their states. ``commit`` is
        called when all have records: they are ready, or the write is to be answered. Its TargetError refuses the start.
        """
        batch = _Batch(tasks, caller, commit=commit)
        self._begin(batch)
        try:
            with trio.move_on_after(patience(PATIENCE)):
                await batch.decided.wait()
            if not batch.decided.is_set():
                await self._answer_early(batch)
            if batch.error is not None:
                with trio.move_on_after(GRACE):
                    await batch.over.wait()
        finally:
            batch.caller_waits = False
        if batch.error is not None:
            for task in tasks if batch.failed is None else [batch.failed]:
                log_refusal(LOG, task, batch.error)
            if batch.failed is not None and len(tasks) > 1:
                raise StartRefused(batch.error, batch.failed) from batch.error
            raise batch.error

    async def _answer_early(self, batch: _Batch) -> None:
        """Let the write succeed before the tasks have begun. The next daemon must know them: without records, refuse
        the write."""
        try:
            self._write_records(batch)
        except TargetError as error:
            batch.refusal = error
            batch.scope.cancel()
            await batch.decided.wait()
        else:
            batch.early = True

    def start_queued(self, task: Task, caller: CallerProcess, check: Callable[[], Awaitable[None]] | None) -> None:
        """Start a STARTING task in the background, after ``check`` if any: an error ends it. Takes over ``caller``."""
        self._begin(_Batch([task], caller, caller_waits=False, check=check))

    def _begin(self, batch: _Batch) -> None:
        before = [self._batches[task] for task in batch.tasks if task in self._batches]
        self._batches.update(dict.fromkeys(batch.tasks, batch))
        for task in batch.tasks:
            task.start_cancelled = False
        self._nursery.start_soon(self._carry_out, batch, before)

    def cancel(self, task: Task) -> None:
        """Give up the start of ``task`` and of its batch. Does nothing if they have begun."""
        batch = self._batches.get(task)
        if batch is not None:
            batch.scope.cancel()

    def is_cancelling(self, task: Task) -> bool:
        """Whether the start of ``task`` was cancelled, but is not yet undone."""
        batch = self._batches.get(task)
        return batch is not None and batch.scope.cancel_called and batch.refusal is None

    def kill(self, task: Task) -> None:
        """Like ``cancel``, but kill the worker at once, without undo of its preparation."""
        self.cancel(task)
        if task.worker is not None:
            task.worker.signal(signal.SIGKILL)

    async def _carry_out(self, batch: _Batch, before: Sequence[_Batch]) -> None:
        try:
            error = await self._prepare_all(batch, before)
            if error is None:
                await self._let_go(batch)
            else:
                for task in batch.tasks:
                    task.start_cancelled = isinstance(error, StartCancelled)
                batch.error = error
                batch.decided.set()
                await self._give_up(batch, error)
        finally:
            for each in batch.workers:
                each.channel.close()
            for task in batch.tasks:
                if self._batches.get(task) is batch:
                    del self._batches[task]
            batch.decided.set()
            batch.over.set()

    async def _prepare_all(self, batch: _Batch, before: Sequence[_Batch]) -> KtaskfsError | None:
        """Get a ready worker and a record for each task. Returns the error, or None.

        ``before`` are earlier starts of the same tasks, whose workers may still be undoing their preparation.
        """
        try:
            with batch.scope:
                for earlier in before:
                    await earlier.over.wait()
                if batch.check is not None:
                    await batch.check()
                for task in batch.tasks:
                    batch.failed = task
                    await self._prepare(task, batch)
            batch.failed = None
            if batch.scope.cancel_called:  # possibly after the last worker became ready
                return batch.refusal or StartCancelled("cancelled before the work began")
            self._write_records(batch, State.RUNNING)
        except KtaskfsError as refusal:
            return refusal
        except Exception:
            # A bug must not end the daemon, because others' tasks depend on it.
            LOG.exception("starting %s", batch.tasks)
            return WorkerLost("the start failed unexpectedly; see the log")
        finally:
            batch.caller.close()
        return None

    async def _give_up(self, batch: _Batch, error: KtaskfsError) -> None:
        """End the workers, last one first, so that each finds its target unchanged and undoes its preparation."""
        late = not batch.caller_waits
        if not late:  # the tasks return to their old states, without a worker
            for each in batch.workers:
                each.task.worker = None
        for ticket in batch.lost:  # its channel is closed
            await self._launcher.exit_status(ticket)
        for each in reversed(batch.workers):
            each.channel.close()  # so the worker undoes its preparation and ends
            await wait_for_end(each.worker, self._cgroups)
            self._nursery.start_soon(self._launcher.exit_status, each.worker.ticket)
            each.task.worker = None
            each.worker.close()
        for task in batch.tasks:
            await trio.lowlevel.checkpoint()  # each takes milliseconds
            try:
                self._state.forget_page(task.number)
            except OSError as page_error:  # the next start replaces the page, or the next daemon removes it
                LOG.error("cannot remove the page of task %s: %s", task.name, page_error)
            if late:
                self._lifecycle.refuse_late(task, _reason(task, batch, error))

    def _write_records(self, batch: _Batch, state: State = State.STARTING) -> None:
        """Write the records of tasks that have not begun, with ``state``. On TargetError nothing is committed.

        It comes before any GO: the next daemon must know every worker that may have begun.
        """
        try:
            for task in batch.tasks:
                if task.state is State.STARTING:  # otherwise it has a record, or was even dropped after its end
                    self._state.write(Record.of(task)._replace(state=state))
        except OSError as error:
            raise TargetError.from_os(error, "write the task's record") from error
        batch.commit()

    async def _let_go(self, batch: _Batch) -> None:
        self._table.move_all(batch.tasks, State.RUNNING)  # before anything else, such as a cancel
        with trio.CancelScope(shield=True):
            for each in batch.workers:
                worker = each.task.worker = each.worker._replace(begun=True)
                self._state.crash_point("send GO")
                try:
                    await each.channel.send(protocol.GO)
                    self._state.crash_point("GO was sent")
                except OSError as error:  # it has died; its watcher will notice
                    LOG.debug("task %s: %s", each.task.name, error)
                self._lifecycle.begin(each.task, worker)

    async def _prepare(self, task: Task, batch: _Batch) -> None:
        """Fork a worker into ``batch.workers``, and wait until it is ready. Raises KtaskfsError."""
        follows = task is not batch.tasks[-1]
        forked = await self._worker_maker.fork(task, batch.caller, follows=follows, lost=batch.lost.append)
        batch.workers.append(forked)  # before anything can fail, so that a refusal waits for its undo
        new = batch.workers[-1] = self._worker_maker.watched(forked)
        task.worker = new.worker
        if batch.early:  # the next daemon waits for its undo
            self._lifecycle.save(task)
        self._state.crash_point("a worker is forked")
        task.history = await self._worker_maker.wait_until_ready(new)
        self._state.crash_point("the worker is ready")


def _reason(task: Task, batch: _Batch, error: KtaskfsError) -> KtaskfsError:
    """The reason why ``task`` does not begin, for its ``error``."""
    if batch.failed is None or batch.failed is task:
        return error
    message = f"task {batch.failed.name} of the same write could not start: {error.message}"
    return KtaskfsError(message, errno=errno.ECANCELED)
