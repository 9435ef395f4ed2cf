"""Getting a worker for one task: its page, a process, its first words; and seeing one off that is not to begin."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.errors import TargetError, WorkerLost
from ktaskfs.host import credentials
from ktaskfs.host.process import cpu_ticks
from ktaskfs.host.topology import usable_cpus
from ktaskfs.operations.base.resume import Baseline
from ktaskfs.progress import Shape, create_page, write_requests
from ktaskfs.tasks.task import WorkerHandle
from ktaskfs.worker import protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.tasks.launcher import ForkedWorker, Launcher
    from ktaskfs.tasks.record import StateDirectory
    from ktaskfs.tasks.task import Task
    from ktaskfs.tasks.tunables import Settings

TIMEOUT: Final = 60.0
"""Seconds after which a worker that has neither answered nor used a CPU is given up: it hangs in its target. One that
counts files or reserves from a pool that has to grow may legitimately take long; a minute is a guess."""
PARTING: Final = 0.5
"""Seconds for which a worker that was killed is waited for."""
SPARE_RANGES: Final = 64
"""Ranges that a page has room for beyond those known before the operation makes its plan: one for each NUMA node."""


@dataclass(frozen=True)
class Recruit:
    """A worker of ``task`` that waits for GO on ``channel``, once it is ready."""

    task: Task
    worker: WorkerHandle
    channel: trio.socket.SocketType


class Recruiter:
    """Has workers forked; ``settings`` are the tunables."""

    def __init__(self, launcher: Launcher, state: StateDirectory, nursery: trio.Nursery, settings: Settings) -> None:
        self._launcher = launcher
        self._state = state
        self._nursery = nursery
        self._settings = settings

    async def fork(self, task: Task, caller: CallerProcess) -> Recruit:
        """A worker that prepares itself from now on, and is then to be heard. Raises KtaskfsError."""
        with contextlib.ExitStack() as undo:
            page, shape = self._make_page(task)
            undo.callback(os.close, page)
            channel, theirs = _make_channel()
            undo.callback(channel.close)
            self._state.step("ask for a worker")
            with theirs:
                forked = await self._fork(task, [page, theirs.fileno(), *caller.descriptors], caller)
            undo.callback(os.close, forked.pidfd)
            undo.callback(self._nursery.start_soon, self._launcher.exit_status, forked.ticket)
            began = credentials.start_time(forked.pid) or 0  # of one that has died: nobody will find that one
            try:
                write_requests(page, task.requests)  # they may have changed since the page was made
            except OSError as error:
                raise TargetError.from_os(error, "write to the page shared with the worker") from error
            undo.pop_all()
        return Recruit(task, WorkerHandle(forked.pid, began, forked.pidfd, page, shape, forked.ticket), channel)

    async def _fork(self, task: Task, fds: Sequence[int], caller: CallerProcess) -> ForkedWorker:
        with trio.move_on_after(TIMEOUT):
            return await self._launcher.fork(self._request(task, caller), fds)
        raise WorkerLost(f"no worker could be started within {TIMEOUT:.0f} s", errno=errno.ETIMEDOUT)

    def _make_page(self, task: Task) -> tuple[int, Shape]:
        slots = len(usable_cpus())
        shape = Shape(slots, SPARE_RANGES + len(task.remaining or ()))
        try:
            self._state.forget_page(task.number)
            return create_page(self._state.page_path(task.number), shape, task.requests), shape
        except OSError as error:
            raise TargetError.from_os(error, "make the page shared with the worker") from error

    def _request(self, task: Task, caller: CallerProcess) -> protocol.StartRequest:
        assert task.operation is not None
        return protocol.StartRequest(
            name=task.name,
            operation=task.operation.name,
            parameters=task.texts,
            remaining=None if task.remaining is None else [(n.start, n.size, n.nid) for n in task.remaining],
            baseline=None if task.baseline is None else asdict(task.baseline),
            identity=caller.identity.to_fields(),
            load_bal_shift=self._settings["load_bal_shift"],
        )

    async def hear(self, recruit: Recruit) -> tuple[int, Baseline]:
        """Wait until a worker is ready; returns the units it is to do, and what they rest on.

        Raises its refusal, or WorkerLost.
        """
        data = await self._answer(recruit)
        if not data:
            status = await self._launcher.exit_status(recruit.worker.ticket)
            raise WorkerLost(f"the worker died before it could begin{ending_text(status)}")
        try:
            answer = protocol.decode(data)
            if isinstance(answer, protocol.Ready):
                return answer.total, Baseline.from_fields(answer.baseline)
        except (ValueError, TypeError, KeyError) as error:
            raise WorkerLost("the worker said something that nobody understands") from error
        if isinstance(answer, protocol.Refused):
            raise answer.error()
        raise WorkerLost("the worker said something that is no answer")

    async def _answer(self, recruit: Recruit) -> bytes:
        """What the worker says first, nothing if it died; raises WorkerLost for one that hangs."""
        worker = recruit.worker
        used = cpu_ticks(worker.pid)
        while True:
            with trio.move_on_after(TIMEOUT):
                try:
                    return await recruit.channel.recv(protocol.MESSAGE_MAX)
                except ConnectionError:
                    return b""
            before, used = used, cpu_ticks(worker.pid)
            if used == before:
                worker.signal(signal.SIGKILL)
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
            await _ends(pidfd, PARTING)
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
