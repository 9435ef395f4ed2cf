"""A new worker for one task: its page, its process and its answer; and the end of a worker whose start was given up."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from ktaskfs.errors import NotPermitted, TargetError, WorkerLost
from ktaskfs.host import credentials
from ktaskfs.host.cgroups import frozen_group, own_groups
from ktaskfs.host.group_limits import OomKills
from ktaskfs.host.process import cpu_time
from ktaskfs.host.topology import usable_cpus
from ktaskfs.operations.base.resume import NUMBER_MAX, Baseline
from ktaskfs.progress import Shape, write_requests
from ktaskfs.tasks.taken_over import taken_over
from ktaskfs.tasks.worker_handle import WorkerHandle
from ktaskfs.worker import protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ktaskfs.host.cgroups import GroupMounts
    from ktaskfs.host.credentials import CallerProcess, Identity
    from ktaskfs.tasks.context import TaskContext
    from ktaskfs.tasks.history import History
    from ktaskfs.tasks.launcher import ForkedWorker
    from ktaskfs.tasks.task import Task

TIMEOUT: Final = 60.0
"""Seconds after which a worker that has neither answered nor used a CPU is killed: it hangs in its target. Counting
files, or growing a pool, may take long; a minute is a guess."""
KILL_WAIT: Final = 0.5
"""Seconds to wait for a worker that was killed."""
SPARE_RANGES: Final = 64
"""Room in a page for ranges that the operation adds in its plan: one for each NUMA node."""


class NewWorker(NamedTuple):
    """A worker of ``task`` that takes over ``identity``, prepares, and then waits for GO on ``channel``."""

    task: Task
    worker: WorkerHandle
    channel: trio.socket.SocketType
    identity: Identity


class WorkerMaker:
    """Makes the pages of workers, and has the workers forked."""

    def __init__(self, context: TaskContext) -> None:
        self._launcher = context.launcher
        self._state = context.state
        self._settings = context.table.settings
        self._mounts = context.cgroups

    async def fork(
        self, task: Task, caller: CallerProcess, *, follows: bool, lost: Callable[[int], object]
    ) -> NewWorker:
        """Start a worker, which begins to prepare; call ``watched`` and ``wait_until_ready`` next. Raises KtaskfsError.

        ``follows``: another one follows when this one is ready. ``lost`` is as in ``Launcher.fork``; that worker undoes
        what it has prepared.
        """
        identity = taken_over(caller.identity, self._settings)
        oom_kills = self._oom_kills(identity)  # before the worker, which a small limit kills at once
        with contextlib.ExitStack() as undo:
            page, shape = self._make_page(task)
            undo.callback(os.close, page)
            channel, theirs = _make_channel()
            undo.callback(channel.close)
            self._state.crash_point("ask for a worker")
            with theirs:
                request = self._request(task, identity, follows=follows)
                forked = await self._fork(request, [page, theirs.fileno(), *caller.descriptors], lost)
            undo.pop_all()
        worker = WorkerHandle(forked.pid, 0, forked.pidfd, page, shape, forked.ticket, oom_kills, begun=False)
        return NewWorker(task, worker, channel, identity)

    def _oom_kills(self, identity: Identity) -> OomKills | None:
        """Raises TargetError without a descriptor."""
        try:
            return OomKills.of(self._mounts, identity.cgroups or own_groups().values())
        except OSError as error:
            raise TargetError.from_os(error, "read your control groups") from error

    def watched(self, new: NewWorker) -> NewWorker:
        """``new`` with what identifies its process. Raises TargetError without a descriptor."""
        worker, began = new.worker, 0  # it has already exited, or /proc hides it (hidepid)
        try:
            with contextlib.suppress(PermissionError):
                began = 0 if worker.ended else credentials.start_time(worker.pid) or 0
            write_requests(worker.page, new.task.requests)  # the requests may have changed since the page was made
        except OSError as error:
            raise TargetError.from_os(error, "watch the worker") from error
        return new._replace(worker=worker._replace(start_time=began))

    async def _fork(
        self, request: protocol.StartRequest, fds: Sequence[int], lost: Callable[[int], object]
    ) -> ForkedWorker:
        with trio.move_on_after(TIMEOUT):
            return await self._launcher.fork(request, fds, lost)
        raise WorkerLost(f"cannot start a worker within {TIMEOUT:.0f} s", errno=errno.ETIMEDOUT)

    def _make_page(self, task: Task) -> tuple[int, Shape]:
        slots = len(usable_cpus())
        shape = Shape(slots, SPARE_RANGES + len(task.history.remaining or ()))
        try:
            return self._state.create_page(task.number, shape, task.requests), shape
        except OSError as error:
            raise TargetError.from_os(error, f"make a page in the state directory {self._state.path}") from error

    def _request(self, task: Task, identity: Identity, *, follows: bool) -> protocol.StartRequest:
        history = task.history
        assert history.operation is not None
        return protocol.StartRequest(
            name=task.name,
            operation=history.operation.name,
            parameters=history.texts,
            remaining=None if history.remaining is None else [(n.start, n.size, n.nid) for n in history.remaining],
            baseline=None if history.baseline is None else history.baseline._asdict(),
            identity=identity.to_fields(),
            load_bal_shift=self._settings["load_bal_shift"],
            follows=follows,
        )

    async def wait_until_ready(self, new: NewWorker) -> History:
        """Wait until a worker is ready; returns the history of its task with the units, their baseline and boot, and
        the defaults that the target decided.

        Raises its refusal, or WorkerLost; NotPermitted if its label prevents communication with the daemon.
        """
        data = await self._answer(new)
        if not data:
            status = await self._launcher.exit_status(new.worker.ticket)
            if status is not None and os.WIFEXITED(status) and os.WEXITSTATUS(status) == protocol.UNHEARD:
                text = f"your {new.identity.label} keeps the worker from answering on its unix socket"
                raise NotPermitted(text, errno=errno.EACCES)
            raise WorkerLost(f"the worker died before it could begin{new.worker.ending_text(status)}")
        try:
            answer = protocol.decode(data)
            if isinstance(answer, protocol.Ready) and 0 <= answer.total <= NUMBER_MAX:
                if new.identity.label is not None:
                    new.worker.signal(signal.SIGUSR1)  # it has nothing to read yet; this checks that it can be woken
                return planned(new.task.history, answer)._replace(boot=self._state.boot)
        except (ValueError, TypeError, KeyError) as error:
            raise WorkerLost("the worker sent an invalid message") from error
        if isinstance(answer, protocol.WorkerRefused):
            raise answer.error()
        raise WorkerLost("the worker sent an invalid answer")

    async def _answer(self, new: NewWorker) -> bytes:
        """The worker's first message, empty if it died. Raises WorkerLost if it hangs; a frozen one does not."""
        worker = new.worker
        used = cpu_time(worker.pid)
        while True:
            with trio.move_on_after(TIMEOUT):
                try:
                    return await new.channel.recv(protocol.ANSWER_MAX)
                except ConnectionError:
                    return b""
            before, used = used, cpu_time(worker.pid)
            if used == before and not _is_frozen(worker.pid, self._mounts):
                worker.signal(signal.SIGKILL)
                message = f"the worker could not open and reserve its target within {TIMEOUT:.0f} s"
                raise WorkerLost(message, errno=errno.ETIMEDOUT)


def planned(history: History, answer: protocol.Ready) -> History:
    """``history`` after the answer. The caller controls the worker, so only possible defaults count.

    With another baseline the task begins anew, so the rest of an earlier run is not its rest. Raises ValueError for an
    invalid baseline.
    """
    declared = () if history.operation is None else history.operation.declared
    used = {
        each.name: answer.defaults[each.name] for each in declared if answer.defaults.get(each.name) in each.defaults
    }
    baseline = Baseline.from_fields(answer.baseline)
    if baseline != history.baseline:
        history = history._replace(remaining=None, base=0)
    return history._replace(planned=answer.total, baseline=baseline, used=used)


async def wait_for_end(worker: WorkerHandle, mounts: GroupMounts) -> None:
    """Return when a worker whose start was given up has ended. Kills it if it hangs for TIMEOUT; a frozen one does not.

    Leaves a worker behind that survives SIGKILL (it waits for a device) or may not be signalled.
    """
    used = cpu_time(worker.pid)
    while not await _ends(worker.pidfd, TIMEOUT):
        before, used = used, cpu_time(worker.pid)
        if used == before and not _is_frozen(worker.pid, mounts):
            with contextlib.suppress(NotPermitted):
                worker.signal(signal.SIGKILL)
            await _ends(worker.pidfd, KILL_WAIT)
            return


def _is_frozen(pid: int, mounts: GroupMounts) -> bool:
    with contextlib.suppress(OSError):  # no descriptor is left to look
        return frozen_group(mounts, pid) is not None
    return False


async def _ends(pidfd: int, seconds: float) -> bool:
    with trio.move_on_after(seconds):
        await trio.lowlevel.wait_readable(pidfd)
        return True
    return False


def _make_channel() -> tuple[trio.socket.SocketType, socket.socket]:
    """The daemon's and the worker's end; raises TargetError."""
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise TargetError.from_os(error, "make a channel to the worker") from error
    return trio.socket.from_stdlib_socket(ours), theirs
