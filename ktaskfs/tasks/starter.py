"""Starting workers: all tasks of one write have one ready, or none begins."""

from __future__ import annotations

import errno
import logging
import signal
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.errors import KtaskfsError, TargetError, WorkerLost
from ktaskfs.tasks.recruit import Recruit, Recruiter, see_off
from ktaskfs.tasks.task import State, Task, WorkerHandle
from ktaskfs.worker import protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.tasks.launcher import Launcher
    from ktaskfs.tasks.record import StateDirectory
    from ktaskfs.tasks.table import TaskTable

LOG: Final = logging.getLogger(__name__)
PATIENCE: Final = 0.9
"""Seconds for which the write that starts a task waits for its target: no request may block for much longer."""
GRACE: Final = 0.5
"""Seconds for which a write that is refused waits for the workers to take back what they prepared."""


class StartCancelled(KtaskfsError):
    """Somebody cancelled the task while its worker was preparing (ECANCELED)."""

    default_errno = errno.ECANCELED


@dataclass
class _Batch:
    """Tasks that start together. ``writer_waits`` until the write that asked has been answered.

    forked:  those that have a worker, in order.
    error:   why none of them begins, as soon as that is known.
    decided: they have begun, or there is an error.
    over:    they have begun, or nothing is left of their workers.
    """

    tasks: Sequence[Task]
    caller: CallerProcess
    forked: list[Recruit] = field(default_factory=list)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    writer_waits: bool = True
    error: KtaskfsError | None = None
    decided: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)


class Starter:
    """Brings tasks from STARTING to RUNNING, in ``nursery``.

    ``began`` is called with each task whose worker was let go. Once the write that asked had to be answered before
    that, a task's record is written with ``save``, and ``failed_late`` is called with it and the error if it fails.
    """

    def __init__(
        self,
        table: TaskTable,
        launcher: Launcher,
        state: StateDirectory,
        nursery: trio.Nursery,
        *,
        began: Callable[[Task, WorkerHandle], None],
        save: Callable[[Task], object],
        failed_late: Callable[[Task, KtaskfsError], None],
    ) -> None:
        self._table = table
        self._launcher = launcher
        self._state = state
        self._nursery = nursery
        self._recruiter = Recruiter(launcher, state, nursery, table.settings)
        self._began = began
        self._save = save
        self._failed_late = failed_late
        self._batches: dict[Task, _Batch] = {}
        """Of each task, from its start until nothing is left of it but the work itself."""

    async def start(self, tasks: Sequence[Task], caller: CallerProcess) -> None:
        """Start ``tasks``, which are STARTING; takes over ``caller``, whose descriptors it closes.

        Returns when all have begun, or after PATIENCE, with some still STARTING. Raises KtaskfsError if none
        may begin; their states are then the owner's to set right.
        """
        batch = _Batch(tasks, caller)
        before = [self._batches[task] for task in tasks if task in self._batches]
        self._batches.update(dict.fromkeys(tasks, batch))
        self._nursery.start_soon(self._carry_out, batch, before)
        try:
            with trio.move_on_after(PATIENCE):
                await batch.decided.wait()
            if batch.error is not None:
                with trio.move_on_after(GRACE):
                    await batch.over.wait()
        finally:
            batch.writer_waits = False
        if batch.error is not None:
            raise batch.error
        if not batch.over.is_set():  # answered with success: a successor of this daemon must know of the tasks
            for task in batch.tasks:
                self._save(task)

    def cancel(self, task: Task) -> None:
        """Give up the start of ``task``, and of those that were to begin with it, unless that has been done."""
        batch = self._batches.get(task)
        if batch is not None:
            batch.scope.cancel()

    def kill(self, task: Task) -> None:
        """As ``cancel``, and kill the worker at once, whatever it leaves of what it prepared."""
        self.cancel(task)
        if task.worker is not None:
            task.worker.signal(signal.SIGKILL)

    async def _carry_out(self, batch: _Batch, before: Sequence[_Batch]) -> None:
        try:
            error = await self._prepare_all(batch, before)
            if error is None:
                await self._let_go(batch)
            else:
                batch.error = error
                batch.decided.set()
                await self._give_up(batch, error)
        finally:
            for each in batch.forked:
                each.channel.close()
            for task in batch.tasks:
                if self._batches.get(task) is batch:
                    del self._batches[task]
            batch.decided.set()
            batch.over.set()

    async def _prepare_all(self, batch: _Batch, before: Sequence[_Batch]) -> KtaskfsError | None:
        """Have a worker ready for each task, and a record; returns why there is not, if so.

        ``before`` are earlier starts of the same tasks, of which a worker may still be taking back what it prepared.
        """
        try:
            with batch.scope:
                for earlier in before:
                    await earlier.over.wait()
                for task in batch.tasks:
                    await self._prepare(task, batch)
            if batch.scope.cancel_called:  # though perhaps only after the last worker had said that it is ready
                return StartCancelled("cancelled before the work began")
            self._write_records(batch)
        except KtaskfsError as refusal:
            return refusal
        except Exception:
            # A bug must not end the daemon, which others' tasks depend on.
            LOG.exception("starting %s", batch.tasks)
            return WorkerLost("the start failed in an unforeseen way; the log has more")
        finally:
            batch.caller.close()
        return None

    async def _give_up(self, batch: _Batch, error: KtaskfsError) -> None:
        """End the workers, the last one first: each finds its target as it has left it, and takes that back."""
        late = not batch.writer_waits
        if not late:  # the tasks go back to what they were, without a worker
            for each in batch.forked:
                each.task.worker = None
        for each in reversed(batch.forked):
            each.channel.close()  # its end tells the worker to take back what it prepared, and to end
            await see_off(each.worker.pid, each.worker.pidfd)
            self._nursery.start_soon(self._launcher.exit_status, each.worker.ticket)
            each.task.worker = None
            each.worker.close()
        for task in batch.tasks:
            try:
                self._state.forget_page(task.number)
            except OSError as page_error:  # it is made anew before the next start, or swept by the next daemon
                LOG.error("the page of task %s cannot be removed: %s", task.name, page_error)
            if late:
                self._failed_late(task, error)

    def _write_records(self, batch: _Batch) -> None:
        """Before any GO: a successor of this daemon must know every worker that may have begun."""
        try:
            for task in batch.tasks:
                self._state.write(replace(task.record(), state=State.RUNNING))
        except OSError as error:
            raise TargetError.from_os(error, "write the task's record") from error

    async def _let_go(self, batch: _Batch) -> None:
        for task in batch.tasks:  # all of them before anything else can happen, such as a cancel
            self._table.move(task, State.RUNNING)
        with trio.CancelScope(shield=True):
            for each in batch.forked:
                self._state.step("let the worker go")
                try:
                    await each.channel.send(protocol.GO)
                    self._state.step("the worker was let go")
                except OSError as error:  # it has just died, and whoever watches it will find that out
                    LOG.debug("task %s: %s", each.task.name, error)
                self._began(each.task, each.worker)

    async def _prepare(self, task: Task, batch: _Batch) -> None:
        """Fork a worker, which is then among ``batch.forked``, and hear that it can begin. Raises KtaskfsError."""
        recruit = await self._recruiter.fork(task, batch.caller)
        task.worker = recruit.worker
        batch.forked.append(recruit)
        self._state.step("a worker is forked")
        task.planned, task.baseline = await self._recruiter.hear(recruit)
        self._state.step("the worker is ready")
