"""Starting workers: all tasks of one write have one ready, or none begins."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.errors import KtaskfsError, TargetError, WorkerLost
from ktaskfs.host import credentials
from ktaskfs.host.process import cpu_ticks
from ktaskfs.host.topology import usable_cpus
from ktaskfs.progress import Shape, create_page, write_requests
from ktaskfs.tasks.task import State, Task, Worker
from ktaskfs.worker import protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ktaskfs.host.credentials import Caller
    from ktaskfs.tasks.launcher import Forked, Launcher
    from ktaskfs.tasks.record import StateDirectory
    from ktaskfs.tasks.table import TaskTable

LOG: Final = logging.getLogger(__name__)
PATIENCE: Final = 0.9
"""Seconds for which the write that starts a task waits for its target: no request may block for much longer."""
TIMEOUT: Final = 60.0
"""Seconds after which a worker that has neither answered nor used a CPU is given up: it hangs in its target. One that
counts files or reserves from a pool that has to grow may legitimately take long; a minute is a guess."""
GRACE: Final = 0.5
"""Seconds for which a write that is refused waits for the workers to take back what they prepared."""
SPARE_RANGES: Final = 64
"""Ranges that a page has room for beyond those known before the operation makes its plan: one for each NUMA node."""


class StartCancelled(KtaskfsError):
    """Somebody cancelled the task while its worker was preparing (ECANCELED)."""

    default_errno = errno.ECANCELED


@dataclass(frozen=True)
class _Forked:
    """A worker that waits for GO on ``channel``, once it is ready."""

    task: Task
    worker: Worker
    channel: trio.socket.SocketType


@dataclass
class _Batch:
    """Tasks that start together. ``writer_waits`` until the write that asked has been answered.

    forked:  those that have a worker, in order.
    error:   why none of them begins, as soon as that is known.
    decided: they have begun, or there is an error.
    over:    they have begun, or nothing is left of their workers.
    """

    tasks: Sequence[Task]
    caller: Caller
    forked: list[_Forked] = field(default_factory=list)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    writer_waits: bool = True
    error: KtaskfsError | None = None
    decided: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)


class Starter:
    """Brings tasks from STARTING to RUNNING, in ``nursery``.

    ``began`` is called with each task whose worker was let go. ``failed_late`` is called with the task and the
    error for those that were not, after the write that asked for them had to be answered.
    """

    def __init__(
        self,
        table: TaskTable,
        launcher: Launcher,
        state: StateDirectory,
        nursery: trio.Nursery,
        *,
        began: Callable[[Task, Worker], None],
        failed_late: Callable[[Task, KtaskfsError], None],
    ) -> None:
        self._table = table
        self._launcher = launcher
        self._state = state
        self._nursery = nursery
        self._began = began
        self._failed_late = failed_late
        self._batches: dict[Task, _Batch] = {}
        """Of each task, from its start until nothing is left of it but the work itself."""

    async def start(self, tasks: Sequence[Task], caller: Caller) -> None:
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
        if not batch.over.is_set():
            self._record_late(batch)

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

    def _record_late(self, batch: _Batch) -> None:
        """The write is answered with success, so that a successor of this daemon must know of the tasks."""
        for task in batch.tasks:
            try:
                self._state.write(task.record())
            except OSError as error:
                LOG.error("the record of task %s cannot be written: %s", task.name, error)

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
        with contextlib.ExitStack() as undo:
            page, shape = self._make_page(task)
            undo.callback(os.close, page)
            channel, theirs = _make_channel()
            undo.callback(channel.close)
            self._state.step("ask for a worker")
            with theirs:
                forked = await self._fork(task, [page, theirs.fileno(), batch.caller.root, batch.caller.cwd], batch)
            undo.callback(os.close, forked.pidfd)
            undo.callback(self._nursery.start_soon, self._launcher.exit_status, forked.ticket)
            began = credentials.start_time(forked.pid) or 0  # of one that has died: nobody will find that one
            try:
                write_requests(page, task.requests)  # they may have changed since the page was made
            except OSError as error:
                raise TargetError.from_os(error, "write to the page shared with the worker") from error
            undo.pop_all()
        task.worker = Worker(forked.pid, began, forked.pidfd, page, shape, forked.ticket)
        batch.forked.append(_Forked(task, task.worker, channel))
        self._state.step("a worker is forked")
        task.planned = await self._hear(channel, forked)
        self._state.step("the worker is ready")

    async def _fork(self, task: Task, fds: Sequence[int], batch: _Batch) -> Forked:
        with trio.move_on_after(TIMEOUT):
            return await self._launcher.fork(self._request(task, batch.caller), fds)
        raise WorkerLost(f"no worker could be started within {TIMEOUT:.0f} s", errno=errno.ETIMEDOUT)

    def _make_page(self, task: Task) -> tuple[int, Shape]:
        slots = len(usable_cpus())
        shape = Shape(slots, SPARE_RANGES + len(task.remaining or ()))
        try:
            self._state.forget_page(task.number)
            return create_page(self._state.page_path(task.number), shape, task.requests), shape
        except OSError as error:
            raise TargetError.from_os(error, "make the page shared with the worker") from error

    def _request(self, task: Task, caller: Caller) -> protocol.StartRequest:
        assert task.operation is not None
        return protocol.StartRequest(
            name=task.name,
            operation=task.operation.name,
            parameters=task.texts,
            remaining=task.remaining,
            identity=caller.identity.to_fields(),
            load_bal_shift=self._table.settings["load_bal_shift"],
        )

    async def _hear(self, channel: trio.socket.SocketType, forked: Forked) -> int:
        """Wait until the worker is ready; returns the units it is to do. Raises its refusal, or WorkerLost."""
        data = await self._answer(channel, forked)
        if not data:
            status = await self._launcher.exit_status(forked.ticket)
            raise WorkerLost(f"the worker died before it could begin{ending_text(status)}")
        try:
            answer = protocol.decode(data)
        except (ValueError, TypeError, KeyError) as error:
            raise WorkerLost("the worker said something that nobody understands") from error
        if isinstance(answer, protocol.Refused):
            raise answer.error()
        if isinstance(answer, protocol.Ready):
            return answer.total
        raise WorkerLost("the worker said something that is no answer")

    async def _answer(self, channel: trio.socket.SocketType, forked: Forked) -> bytes:
        """What the worker says first, nothing if it died; raises WorkerLost for one that hangs."""
        used = cpu_ticks(forked.pid)
        while True:
            with trio.move_on_after(TIMEOUT):
                try:
                    return await channel.recv(protocol.MESSAGE_MAX)
                except ConnectionError:
                    return b""
            before, used = used, cpu_ticks(forked.pid)
            if used == before:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(forked.pidfd, signal.SIGKILL)
                message = f"the worker could not open and reserve its target within {TIMEOUT:.0f} s"
                raise WorkerLost(message, errno=errno.ETIMEDOUT)


async def see_off(pid: int, pidfd: int) -> None:
    """Return when a worker has ended, which it is about to do; one that hangs instead for TIMEOUT is killed.

    One that stays even then, in the depths of a device that does not answer, is left behind.
    """
    used = cpu_ticks(pid)
    while not await _ends(pidfd, TIMEOUT):
        before, used = used, cpu_ticks(pid)
        if used == before:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            await _ends(pidfd, GRACE)
            return


async def _ends(pidfd: int, seconds: float) -> bool:
    with trio.move_on_after(seconds):
        await trio.lowlevel.wait_readable(pidfd)
        return True
    return False


def _make_channel() -> tuple[trio.socket.SocketType, socket.socket]:
    """Our end and the worker's; raises TargetError."""
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise TargetError.from_os(error, "make a channel to the worker") from error
    return trio.socket.from_stdlib_socket(ours), theirs


def ending_text(status: int | None) -> str:
    """What waitpid(2) told, as the end of a sentence; empty if it told nothing."""
    if status is None:
        return ""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        known = number in {each.value for each in signal.Signals}
        return f", killed by signal {number}" + (f" ({signal.Signals(number).name})" if known else "")
    return f", with exit status {os.WEXITSTATUS(status)}"
