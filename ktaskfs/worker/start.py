"""Starts the spawner: the first one is forked by the daemon before its own imports, later ones are a new Python.

A fork shares what it has imported, and that is a third of what both import together. But the daemon can only fork while
it has one thread and nothing that a worker must not have. The rest of the imports of both run at the same time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from ktaskfs.host.process import open_child
from ktaskfs.worker import protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ktaskfs.operations.base.operation import SpecWord


class SpawnerProcess(NamedTuple):
    """A spawner, which ends with ``sock``."""

    pid: int
    pidfd: int
    sock: socket.socket

    def reap(self) -> int:
        """Its exit status, or minus the signal that killed it. Call it once, when ``pidfd`` is readable."""
        os.close(self.pidfd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def fork_spawner(operations: Mapping[str, SpecWord]) -> SpawnerProcess:
    """Fork the spawner from this process, which has one thread. Raises OSError."""

    def fork(sock: socket.socket) -> int:
        pid = os.fork()
        if pid == 0:
            _serve(sock, operations)
        return pid

    return _start(fork)


def start_spawner() -> SpawnerProcess:
    """Start the spawner as a new Python. Raises OSError."""
    # Neither the working directory nor a user's site-packages may add a module to the spawner, and the environment only
    # if it may for the daemon.
    closed = ["-I"] if sys.flags.isolated else ["-P", "-s"]

    def spawn(sock: socket.socket) -> int:
        command = [sys.executable, *closed, "-m", "ktaskfs.worker.spawner", str(sock.fileno())]
        sock.set_inheritable(True)
        null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0)
        return os.posix_spawn(sys.executable, command, os.environ, file_actions=[null], setsid=True)

    return _start(spawn)


def _start(start: Callable[[socket.socket], int]) -> SpawnerProcess:
    """Call ``start`` with the spawner's end of a new socket; it returns the pid. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.ExitStack() as undo:
        undo.callback(ours.close)
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, protocol.MESSAGE_MAX)
            pid = start(theirs)
        pidfd = open_child(pid)
        undo.pop_all()
    return SpawnerProcess(pid, pidfd, ours)


def _serve(sock: socket.socket, operations: Mapping[str, SpecWord]) -> NoReturn:
    """In a forked spawner: serve to the end."""
    status = 1
    try:
        _leave()
        from ktaskfs.worker.spawner import serve_on

        serve_on(sock, operations)
        status = 0
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(status)


def _leave() -> None:
    """In a forked spawner: leave the session and the standard input of the daemon."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    # The daemon has none if its caller has closed standard error.
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115 - for the whole life
