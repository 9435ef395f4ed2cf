"""The daemon's side of the spawner: requests workers, receives reports of their ends, and restarts the spawner if it
dies."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import signal
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from ktaskfs.errors import NO_MORE_PROCESSES, TooBig, WorkerLost
from ktaskfs.host.process import is_stopped
from ktaskfs.tasks.patience import patience
from ktaskfs.worker import protocol
from ktaskfs.worker.start import SpawnerProcess, start_spawner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

LOG: Final = logging.getLogger(__name__)
STATUS_PATIENCE: Final = 1.0
"""Seconds to wait for the spawner's report on a worker that is known to have ended."""
END_PATIENCE: Final = 5.0
"""Seconds for a spawner to end by itself after its socket was closed; a guess."""


@dataclass
class _RequestedChild:
    """A process requested from ``spawner``. The spawner's reports set both events, and so does its end.

    ``lost``: its request was given up after the spawner had got it, so nobody has the pidfd.
    """

    spawner: trio.socket.SocketType | None = None
    answer: protocol.Forked | None = None
    pidfd: int = -1
    answered: trio.Event = field(default_factory=trio.Event)
    status: int | None = None
    exited: trio.Event = field(default_factory=trio.Event)
    lost: bool = False

    def lose(self) -> None:
        """No more reports come."""
        self.answered.set()
        self.exited.set()


class ForkedWorker(NamedTuple):
    """A new worker: its pid, a pidfd that the receiver must close, and the ticket for ``exit_status``."""

    pid: int
    pidfd: int
    ticket: int


class Launcher:
    """Owns the spawner process. It runs on the trio thread; ``nursery`` runs the receiving task."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._sock: trio.socket.SocketType | None = None
        self._pid = 0
        """The pid of the spawner, while there is a socket."""
        self._children: dict[int, _RequestedChild] = {}
        """By ticket, from the request until ``exit_status``."""
        self._sending = trio.Lock()
        """Held during a send, because only one trio task may wait until a socket takes more."""
        self._tickets = itertools.count(1)

    def start(self, spawner: SpawnerProcess | None = None) -> None:
        """Start the spawner, if there is none, or take ``spawner``. Raises OSError."""
        if self._sock is None:
            spawner = spawner or start_spawner()
            self._sock = trio.socket.from_stdlib_socket(spawner.sock)
            self._pid = spawner.pid
            self._nursery.start_soon(self._receive, self._sock, spawner)

    @property
    def stopped(self) -> int | None:
        """The pid of the spawner if a signal or a tracer has stopped it: every start waits for it. Else None."""
        return self._pid if self._sock is not None and is_stopped(self._pid) else None

    async def fork(
        self, request: protocol.ForkRequest, fds: Sequence[int], lost: Callable[[int], object] | None = None
    ) -> ForkedWorker:
        """Request a fork with ``fds``. Raises WorkerLost, and TooBig for a rest of more ranges than fit a message.

        ``lost`` gets the ticket of a worker that there may be although this raises: ``exit_status`` waits for its end.
        """
        ticket = next(self._tickets)
        child = self._children[ticket] = _RequestedChild()
        try:
            await self._send(request._replace(ticket=ticket), fds, child)
            await child.answered.wait()
            answer = child.answer
            if answer is None:
                raise WorkerLost("cannot start a worker: the spawner died")
            # EMFILE: this process has no descriptor left, so the kernel dropped the pidfd.
            number = answer.errno or (0 if child.pidfd >= 0 else errno.EMFILE)
            if number:
                reason = NO_MORE_PROCESSES if number == errno.EAGAIN else os.strerror(number)
                raise WorkerLost(f"cannot start a worker: {reason}", errno=number)
        except BaseException:
            if child.pidfd >= 0:
                os.close(child.pidfd)
            if lost is None or child.spawner is None or child.exited.is_set():
                del self._children[ticket]
            else:
                child.lost = True
                lost(ticket)
            raise
        return ForkedWorker(answer.pid, child.pidfd, ticket)

    @asynccontextmanager
    async def toucher(self, root: int, sock: int) -> AsyncIterator[int]:
        """The pid of a process that touches files below the directory ``root``, as asked through ``sock``.

        At the end it is killed, and nobody waits for it: it may hang in a lock of the mount. Raises WorkerLost.
        """
        child = await self.fork(protocol.TouchRequest(), [root, sock])
        try:
            yield child.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            os.close(child.pidfd)
            self._nursery.start_soon(self.exit_status, child.ticket)

    async def _send(self, request: protocol.ForkRequest, fds: Sequence[int], child: _RequestedChild) -> None:
        data, sock = protocol.encode(request), self._sock
        if len(data) > protocol.MESSAGE_MAX:  # only ranges can be so many
            raise TooBig("the work that is left has too many separate ranges: start a new task")
        for _ in range(2):  # a killed spawner is detected here, and replaced once
            try:
                async with self._sending:
                    self.start()
                    sock = self._sock
                    assert sock is not None
                    await sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, protocol.packed_fds(fds))])
            except (ConnectionError, trio.ClosedResourceError):
                if self._sock is sock:
                    self._sock = None
            except OSError as error:
                raise WorkerLost(f"cannot reach the spawner: {error.strerror}", errno=error.errno) from error
            else:
                child.spawner = sock  # only now: the end of a spawner that was not told does not concern the child
                if self._sock is not sock:
                    child.lose()
                return
        raise WorkerLost("the spawner dies at its start")

    async def exit_status(self, ticket: int | None) -> int | None:
        """The waitpid(2) status of the worker of ``ticket``; None if its spawner ended before it.

        Call it once, when the worker has ended or is about to end.
        """
        child = None if ticket is None else self._children.get(ticket)
        if ticket is None or child is None:
            return None
        with trio.move_on_after(patience(STATUS_PATIENCE)):
            await child.exited.wait()
        self._children.pop(ticket, None)
        return child.status

    async def _receive(self, sock: trio.socket.SocketType, spawner: SpawnerProcess) -> None:
        try:
            while True:
                data, ancillary, _, _ = await sock.recvmsg(protocol.ANSWER_MAX, socket.CMSG_SPACE(4 * protocol.FDS_MAX))
                if not data:
                    break
                self._hear(data, protocol.received_fds(ancillary))
        except ConnectionError:
            pass  # it was killed before it read a request: same as the end of the stream
        finally:
            if self._sock is sock:
                self._sock = None
            sock.close()
            status = await _reap(spawner)
        LOG.warning("the spawner ended with status %s; running tasks go on; the next start forks another", status)
        for child in self._children.values():
            if child.spawner is sock:
                child.lose()

    def _hear(self, data: bytes, fds: list[int]) -> None:
        try:
            message = protocol.decode(data)
        except (ValueError, TypeError, KeyError) as error:
            LOG.error("the spawner sent an invalid message (%s): %r", error, data[:200])
            for fd in fds:
                os.close(fd)
        else:
            self._take(message, fds)

    def _take(self, message: protocol.Message, fds: list[int]) -> None:
        if isinstance(message, protocol.Forked):
            child = self._children.get(message.ticket)
            if child is not None and message.errno:  # there is no worker
                child.exited.set()
            if child is None or child.lost:  # the start was given up: its channel is closed, so the worker ends
                for fd in fds:
                    os.close(fd)
                return
            child.answer = message
            child.pidfd = fds[0] if fds else -1
            child.answered.set()
        elif isinstance(message, protocol.Exited) and message.ticket in self._children:
            child = self._children[message.ticket]
            child.status = message.status
            child.exited.set()


async def _reap(spawner: SpawnerProcess) -> int:
    """Wait for a spawner whose socket is closed. It is killed if it does not end (it may be stopped)."""
    with trio.CancelScope(shield=True):
        with trio.move_on_after(END_PATIENCE) as patience:
            await trio.lowlevel.wait_readable(spawner.pidfd)
        if patience.cancelled_caught:
            signal.pidfd_send_signal(spawner.pidfd, signal.SIGKILL)
            await trio.lowlevel.wait_readable(spawner.pidfd)
    return spawner.reap()
