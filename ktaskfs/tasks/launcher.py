"""The daemon's side of the spawner: asks it for workers and hears how they ended; starts it anew if it dies."""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.errors import WorkerLost
from ktaskfs.worker import protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

LOG: Final = logging.getLogger(__name__)
STATUS_PATIENCE: Final = 1.0
"""Seconds to wait for the spawner's word on a worker that is known to have ended."""


@dataclass
class _Child:
    """A worker that was asked for of ``spawner``; both events are set by its word, or by its end without a word."""

    spawner: trio.socket.SocketType | None = None
    answer: protocol.Forked | None = None
    pidfd: int = -1
    answered: trio.Event = field(default_factory=trio.Event)
    status: int | None = None
    exited: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True)
class Forked:
    """A new worker: its pid, and a pidfd that is the receiver's to close."""

    pid: int
    pidfd: int


class Launcher:
    """Owns the spawner process. All of it runs on the trio thread; ``nursery`` carries the receiving task."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._sock: trio.socket.SocketType | None = None
        self._children: dict[int, _Child] = {}
        """By task, from the request until ``exit_status`` was asked."""

    def start(self) -> None:
        """Start the spawner, if there is none. Raises OSError."""
        if self._sock is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, protocol.MESSAGE_MAX)
        with theirs:
            # -P -s: neither the daemon's working directory nor a user's site-packages may add a module.
            command = [sys.executable, "-P", "-s", "-m", "ktaskfs.worker.spawner", str(theirs.fileno())]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, cwd="/", start_new_session=True, pass_fds=[theirs.fileno()]
            )
        self._sock = trio.socket.from_stdlib_socket(ours)
        self._nursery.start_soon(self._receive, self._sock, process)

    async def fork(self, request: protocol.StartRequest, fds: Sequence[int]) -> Forked:
        """Have a worker forked with ``fds`` (page, channel, root, working directory). Raises WorkerLost."""
        child = self._children[request.task] = _Child()
        try:
            await self._send(request, fds, child)
            await child.answered.wait()
            answer = child.answer
            if answer is None or answer.errno:
                reason = os.strerror(answer.errno) if answer else "the spawner died"
                raise WorkerLost(f"no worker could be started: {reason}", errno=answer.errno if answer else errno.EIO)
        except BaseException:
            del self._children[request.task]
            if child.pidfd >= 0:
                os.close(child.pidfd)
            raise
        return Forked(answer.pid, child.pidfd)

    async def _send(self, request: protocol.StartRequest, fds: Sequence[int], child: _Child) -> None:
        data = protocol.encode(request)
        for _ in range(2):  # a spawner that was killed is noticed here, and started anew once
            self.start()
            child.spawner = sock = self._sock
            assert sock is not None
            try:
                await sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, protocol.packed_fds(fds))])
            except ConnectionError:
                if self._sock is sock:
                    self._sock = None
            except OSError as error:
                raise WorkerLost(f"the spawner cannot be asked: {error.strerror}", errno=error.errno) from error
            else:
                return
        raise WorkerLost("the spawner dies as soon as it starts")

    async def exit_status(self, task: int) -> int | None:
        """What waitpid(2) gave for the ended worker of ``task``; None if no spawner of ours was its parent to the end.

        To be asked once, after the worker is known to have ended.
        """
        child = self._children.get(task)
        if child is None:
            return None
        with trio.move_on_after(STATUS_PATIENCE):
            await child.exited.wait()
        if self._children.get(task) is child:
            del self._children[task]
        return child.status

    async def _receive(self, sock: trio.socket.SocketType, process: subprocess.Popen[bytes]) -> None:
        try:
            while True:
                data, ancillary, _, _ = await sock.recvmsg(
                    protocol.MESSAGE_MAX, socket.CMSG_SPACE(4 * protocol.FDS_MAX)
                )
                if not data:
                    break
                self._take(protocol.decode(data), protocol.received_fds(ancillary))
        except ConnectionError:
            pass  # the same as the end of the stream: it was killed with a request unread
        finally:
            sock.close()
            with trio.CancelScope(deadline=math.inf, shield=True):
                status = await trio.to_thread.run_sync(process.wait)
        LOG.warning("the spawner ended with status %s; running tasks go on, the next start makes a new one", status)
        if self._sock is sock:
            self._sock = None
        for child in self._children.values():
            if child.spawner is sock:
                child.answered.set()
                child.exited.set()

    def _take(self, message: protocol.Message, fds: list[int]) -> None:
        if isinstance(message, protocol.Forked):
            child = self._children.get(message.task)
            if child is None:  # the start was given up meanwhile; the worker's channel is closed, so it ends
                for fd in fds:
                    os.close(fd)
                return
            child.answer = message
            child.pidfd = fds[0] if fds else -1
            child.answered.set()
        elif isinstance(message, protocol.Exited) and message.task in self._children:
            child = self._children[message.task]
            child.status = message.status
            child.exited.set()
