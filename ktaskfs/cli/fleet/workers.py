"""ClusterShell's workers and event loop, made cheaper for a thousand hosts that write a line a second each.

ClusterShell forks, which copies the page tables of this process: 4 ms of CPU for each host; vfork(2), which subprocess
uses, takes a tenth of that. For each line ClusterShell inspects the signature of the handler's method, formats a debug
message with the client's attributes, and formats another one with all descriptors. It also keeps a line without a
newline however long it is.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

from ClusterShell.Engine.Engine import E_READ, E_WRITE
from ClusterShell.Worker.EngineClient import EngineClientEOF
from ClusterShell.Worker.Exec import ExecClient, ExecWorker
from ClusterShell.Worker.Ssh import SshClient, WorkerSsh

if TYPE_CHECKING:
    import select
    from collections.abc import Callable, Mapping, Sequence

LINE_MOST: Final = 8 << 20
"""Bytes of a line. A result of 1 MiB in JSON has at most six times as many."""
GRACE: Final = 5.0
"""Seconds for the end of a process that has closed its output."""
PROCESS: Final = "process"
"""The stream of a client that ends with its process: the pidfd."""
TOO_LONG: Final = f"a line of more than {LINE_MOST >> 20} MiB"


class GatheringEpoll:
    """Takes the place of the epoll of ClusterShell's engine: pauses before each poll.

    So one turn of the event loop takes the lines of many hosts. A turn is dear, however few lines it takes.
    """

    def __init__(self, epoll: select.epoll, pause: Callable[[], float]) -> None:
        """``pause`` returns the seconds to wait."""
        self._epoll = epoll
        self._pause = pause
        self.register = epoll.register
        self.unregister = epoll.unregister
        self.close = epoll.close

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """See select.epoll."""
        time.sleep(self._pause())
        return self._epoll.poll(timeout)


def _begin(
    client: Any, command: str | Sequence[str], *, shell: bool, env: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    """Begin a process whose input, output and errors are streams of the client. Raises OSError.

    The errors are a stream of their own only for a gateway: ClusterShell reads messages from its output.
    """
    with contextlib.ExitStack() as kept, contextlib.ExitStack() as given:
        stdin, reading = _pipe(kept, given, writes=True)
        stdout, writing = _pipe(kept, given, writes=False)
        stderr, errors = _pipe(kept, given, writes=False) if client._stderr else (None, subprocess.STDOUT)
        environment = None if env is None else {**os.environ, **env}
        process = subprocess.Popen(command, stdin=reading, stdout=writing, stderr=errors, shell=shell, env=environment)
        pidfd = _pidfd_of(process)
        kept.pop_all()  # the client closes them
    if stderr is not None:
        client.streams.set_stream(client.worker.SNAME_STDERR, stderr, E_READ)
    client.streams.set_stream(client.worker.SNAME_STDOUT, stdout, E_READ)
    client.streams.set_stream(client.worker.SNAME_STDIN, stdin, E_WRITE, retain=False)
    client.streams.set_stream(PROCESS, pidfd, E_READ)
    return process


def _pipe(kept: contextlib.ExitStack, given: contextlib.ExitStack, *, writes: bool) -> tuple[int, int]:
    """The own end of a new pipe, to which this process ``writes`` or not, and the end for a child. Raises OSError."""
    readable, writable = os.pipe2(os.O_CLOEXEC)
    own, other = (writable, readable) if writes else (readable, writable)
    kept.callback(os.close, own)
    given.callback(os.close, other)
    os.set_blocking(own, False)
    return own, other


def _pidfd_of(process: subprocess.Popen[bytes]) -> int:
    """Raises OSError after the end of the process."""
    try:
        return os.pidfd_open(process.pid)
    except OSError:  # no descriptor is left
        process.kill()
        process.wait()
        raise


class _Client(ExecClient):  # type: ignore[misc]  # ClusterShell has no types
    """Mixed into a client of ClusterShell's: replaces some of its methods.

    It ends when its output and its process have ended. ClusterShell ends it with the output, and then waits for the
    process, while no other host is heard.
    """

    def __repr__(self) -> str:
        return str(self.key)

    def _exec_nonblock(
        self, commandlist: str | Sequence[str], shell: bool = False, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        return _begin(self, commandlist, shell=shell, env=env)

    def _handle_read(self, sname: str) -> None:
        if sname == PROCESS:
            raise EngineClientEOF
        stream = self.streams[sname]  # a message of a gateway may end the client
        for line in self._readlines(sname):
            self.worker.eh.ev_read(self.worker, self.key, sname, line)
        if len(stream.rbuf) > LINE_MOST:
            stream.rbuf = b""
            self.worker.eh.ev_read(self.worker, self.key, sname, TOO_LONG.encode())
            self.popen.kill()
            raise EngineClientEOF  # ClusterShell then closes the stream

    def _close_stream(self, sname: str, *abort: bool) -> None:  # ClusterShell 1.9 has one argument
        super()._close_stream(sname, *abort)
        if sname == self.worker.SNAME_STDOUT and PROCESS in self.streams:
            self.fire_delay = GRACE
            self._engine.timerq.schedule(self)

    def _fire(self) -> None:
        """Called by ClusterShell ``GRACE`` after the end of the output."""
        self.popen.kill()


class _SshClient(_Client, SshClient):  # type: ignore[misc]  # ClusterShell has no types
    pass


class LocalWorker(ExecWorker):  # type: ignore[misc]  # ClusterShell has no types
    """Runs a command of this machine for each host."""

    SHELL_CLASS = _Client


class SshWorker(WorkerSsh):  # type: ignore[misc]  # ClusterShell has no types
    """Runs ssh(1) for each host, or for a gateway."""

    SHELL_CLASS = _SshClient
