"""A new worker for one task: its page, its process and its answer; and the end of a worker that may not begin."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.errors import TargetError, WorkerLost
from ktaskfs.host import credentials
from ktaskfs.host.cgroups import own_groups
from ktaskfs.host.group_limits import OomKills
from ktaskfs.host.process import cpu_ticks
from ktaskfs.host.topology import usable_cpus
from ktaskfs.operations.base.resume import Baseline
from ktaskfs.progress import Shape, write_requests
from ktaskfs.tasks.tunables import CGROUP
from ktaskfs.tasks.worker_handle import WorkerHandle
from ktaskfs.worker import protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.host.cgroups import Group
    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.tasks.context import TaskContext
    from ktaskfs.tasks.launcher import ForkedWorker
    from ktaskfs.tasks.task import Task

TIMEOUT: Final = 60.0
"""Seconds after which a worker that has neither answered nor used a CPU is killed: it hangs in its target. To count
files, or to reserve from a pool that has to grow, may take long; a minute is a guess."""
KILL_WAIT: Final = 0.5
"""Seconds to wait for a worker that was killed."""
SPARE_RANGES: Final = 64
"""Ranges that a page has room for beyond those known before the operation makes its plan: one for each NUMA node."""


@dataclass(frozen=True)
class NewWorker:
    """A worker of ``task`` that prepares itself, and then waits for GO on ``channel``."""

    task: Task
    worker: WorkerHandle
    channel: trio.socket.SocketType


class WorkerMaker:
    """Makes the pages of workers, and has the workers forked."""

    def __init__(self, context: TaskContext) -> None:
        self._launcher = context.launcher
        self._state = context.state
        self._nursery = context.nursery
        self._settings = context.table.settings
        self._mounts = context.cgroups

    async def fork(self, task: Task, caller: CallerProcess) -> NewWorker:
        """Start a worker, which prepares itself from now on; ``wait_until_ready`` is next. Raises KtaskfsError."""
        with contextlib.ExitStack() as undo:
            page, shape = self._make_page(task)
            undo.callback(os.close, page)
            channel, theirs = _make_channel()
            undo.callback(channel.close)
            self._state.crash_point("ask for a worker")
            with theirs:
                forked = await self._fork(task, [page, theirs.fileno(), *caller.descriptors], caller)
            undo.callback(os.close, forked.pidfd)
            undo.callback(self._nursery.start_soon, self._launcher.exit_status, forked.ticket)
            began = credentials.start_time(forked.pid) or 0  # 0 if it already exited
            try:
                write_requests(page, task.requests)  # they may have changed since the page was made
            except OSError as error:
                raise TargetError.from_os(error, "write to the page shared with the worker") from error
            oom_kills = OomKills.open(self._mounts, self._groups(caller) or own_groups().values())
            undo.pop_all()
        worker = WorkerHandle(forked.pid, began, forked.pidfd, page, shape, forked.ticket, oom_kills)
        return NewWorker(task, worker, channel)

    async def _fork(self, task: Task, fds: Sequence[int], caller: CallerProcess) -> ForkedWorker:
        with trio.move_on_after(TIMEOUT):
            return await self._launcher.fork(self._request(task, caller), fds)
        raise WorkerLost(f"no worker could be started within {TIMEOUT:.0f} s", errno=errno.ETIMEDOUT)

    def _make_page(self, task: Task) -> tuple[int, Shape]:
        slots = len(usable_cpus())
        shape = Shape(slots, SPARE_RANGES + len(task.history.remaining or ()))
        try:
            return self._state.create_page(task.number, shape, task.requests), shape
        except OSError as error:
            raise TargetError.from_os(error, "make the page shared with the worker") from error

    def _request(self, task: Task, caller: CallerProcess) -> protocol.StartRequest:
        history = task.history
        assert history.operation is not None
        return protocol.StartRequest(
            name=task.name,
            operation=history.operation.name,
            parameters=history.texts,
            remaining=None if history.remaining is None else [(n.start, n.size, n.nid) for n in history.remaining],
            baseline=None if history.baseline is None else asdict(history.baseline),
            identity=replace(caller.identity, cgroups=self._groups(caller)).to_fields(),
            load_bal_shift=self._settings["load_bal_shift"],
        )

    def _groups(self, caller: CallerProcess) -> tuple[Group, ...]:
        """The control groups that a worker is to enter."""
        return caller.identity.cgroups if CGROUP.format(self._settings[CGROUP.name]) == "caller" else ()

    async def wait_until_ready(self, new: NewWorker) -> tuple[int, Baseline]:
        """Wait until a worker is ready; returns the units it is to do, and their baseline.

        Raises its refusal, or WorkerLost.
        """
        data = await self._answer(new)
        if not data:
            status = await self._launcher.exit_status(new.worker.ticket)
            raise WorkerLost(f"the worker died before it could begin{new.worker.ending_text(status)}")
        try:
            answer = protocol.decode(data)
            if isinstance(answer, protocol.Ready):
                return answer.total, Baseline.from_fields(answer.baseline)
        except (ValueError, TypeError, KeyError) as error:
            raise WorkerLost("the worker said something that nobody understands") from error
        if isinstance(answer, protocol.Refused):
            raise answer.error()
        raise WorkerLost("the worker said something that is no answer")

    async def _answer(self, new: NewWorker) -> bytes:
        """The worker's first message, empty if it died. Raises WorkerLost if it hangs."""
        worker = new.worker
        used = cpu_ticks(worker.pid)
        while True:
            with trio.move_on_after(TIMEOUT):
                try:
                    return await new.channel.recv(protocol.MESSAGE_MAX)
                except ConnectionError:
                    return b""
            before, used = used, cpu_ticks(worker.pid)
            if used == before:
                worker.signal(signal.SIGKILL)
                message = f"the worker could not open and reserve its target within {TIMEOUT:.0f} s"
                raise WorkerLost(message, errno=errno.ETIMEDOUT)


async def wait_for_end(worker: WorkerHandle) -> None:
    """Return when a worker that may not begin has ended. It is killed if it hangs for TIMEOUT.

    A worker that SIGKILL does not end (it waits for a device that does not answer) is left behind.
    """
    used = cpu_ticks(worker.pid)
    while not await _ends(worker.pidfd, TIMEOUT):
        before, used = used, cpu_ticks(worker.pid)
        if used == before:
            worker.signal(signal.SIGKILL)
            await _ends(worker.pidfd, KILL_WAIT)
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
