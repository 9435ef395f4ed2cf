"""The spawner: a small single-threaded process that forks the workers.

It has imported everything that a worker needs, because an unprivileged worker may be unable to read the
installation. A fork takes a few milliseconds, a new interpreter fifty. One spare worker is always forked in advance,
so that nobody waits for the fork. The spawner is the daemon's child (``start``), ends with the daemon, and leaves its
workers running, as children of init.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import math
import os
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import setproctitle

from ktaskfs.descriptors import close_all_but
from ktaskfs.errors import KtaskfsError
from ktaskfs.host.cgroups import GroupMounts
from ktaskfs.host.kernel import Kernel
from ktaskfs.host.process import open_child
from ktaskfs.host.syscalls import fork
from ktaskfs.line_output import LineOutput
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.worker import protocol
from ktaskfs.worker.look import look
from ktaskfs.worker.run import Worker
from ktaskfs.worker.seal import close_imports, keep_only, report
from ktaskfs.worker.touch import touch
from ktaskfs.worker.warm_up import WarmUp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ktaskfs.operations.base.operation import SpecWord

OUTPUT_MAX: Final = 8192
"""Maximum bytes of one worker's standard error in the log."""
QUIET_MS: Final = 8
"""Milliseconds without a request or the end of a worker, after which a spare worker is forked: a fork takes a CPU from
a new task, and from readers that wait for its end. Tasks also often start in bursts."""
YOUNG_MS: Final = 250
"""Milliseconds from the start of a task, within which none is forked while it runs: the fork and the warm-up take 9 ms
of a CPU, which a short task would notice."""


class _Spare(NamedTuple):
    """A spare worker that waits on ``sock`` for its task; ``output`` is its standard error."""

    pid: int
    pidfd: int
    sock: socket.socket
    output: int

    def discard(self) -> None:
        """End it and close its descriptors."""
        os.close(self.output)
        os.close(self.pidfd)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class _Child(NamedTuple):
    """A worker with a request; ``ticket`` is the request's, ``output`` the pipe that is its standard error.

    ``young_until``: by the monotonic clock, 0 for one without a task.
    """

    pid: int
    output: int
    ticket: int
    young_until: float


class Spawner:
    """Forks on request and reports the end of each worker; ``serve`` runs until the daemon is gone."""

    def __init__(self, sock: socket.socket, operations: Mapping[str, SpecWord]) -> None:
        self._sock = sock
        self._operations = operations
        self._kernel = Kernel.open_read_only()
        self._cgroups = GroupMounts.open()
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)
        self._children: dict[int, _Child] = {}
        """By pidfd of each living worker."""
        self._spare: _Spare | None = None
        self._log = LineOutput(2)
        self._warm_up = self._open_warm_up()

    def serve(self) -> None:
        """Answer requests until the daemon closes the socket."""
        close_imports()
        gc.collect()
        gc.freeze()
        gc.enable()
        while True:
            ready = self._poll.poll(None if self._spare else self._quiet_ms())
            if not ready and self._spare is None:
                self._fork_ahead()
            for fd, _ in ready:
                try:
                    if fd in self._children:
                        self._reap(fd)
                    elif not self._request():
                        return
                except ConnectionError:  # the daemon died during the answer
                    return

    def _quiet_ms(self) -> int:
        young_until = max((child.young_until for child in self._children.values()), default=0.0)
        return max(QUIET_MS, math.ceil((young_until - time.monotonic()) * 1000))

    def _reap(self, pidfd: int) -> None:
        child = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(child.pid, 0)
        self._pass_on(child)
        protocol.send(self._sock, protocol.Exited(child.ticket, status))

    def _request(self) -> bool:
        """Read one request and fork; False when the daemon is gone."""
        data, fds, cut = protocol.receive(self._sock)
        if not data:
            return False
        try:
            self._answer(data, fds, cut=cut)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _answer(self, data: bytes, fds: list[int], *, cut: bool) -> None:
        try:
            request = protocol.decode(data)
        except (ValueError, TypeError, KeyError) as error:
            self._log.write(f"unknown request to the spawner ({error}): {data[:200]!r}")
            return
        if not isinstance(request, protocol.ForkRequest):
            self._log.write(f"the spawner takes no {type(request).__name__}")
            return
        try:
            if cut:  # there was no room for all the descriptors
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            worker = self._tell_a_worker(data, fds)
        except OSError as error:
            protocol.send(self._sock, protocol.Forked(request.ticket, 0, error.errno or errno.EIO))
            return
        young = isinstance(request, protocol.StartRequest)
        young_until = time.monotonic() + YOUNG_MS / 1000 if young else 0.0
        self._children[worker.pidfd] = _Child(worker.pid, worker.output, request.ticket, young_until)
        self._poll.register(worker.pidfd, select.POLLIN)
        protocol.send(self._sock, protocol.Forked(request.ticket, worker.pid, 0), [worker.pidfd])
        if isinstance(request, protocol.StartRequest) and request.follows and self._spare is None:
            self._fork_ahead(warm=False)  # that would take longer than the worker of this request

    def _tell_a_worker(self, data: bytes, fds: list[int]) -> _Spare:
        """Pass the request to the spare worker, or to a new one if there is none or it has died. Raises OSError."""
        for last in (False, True):  # retry once; if that one dies too, give up
            spare, self._spare = self._spare or self._fork(), None
            try:
                with spare.sock:
                    socket.send_fds(spare.sock, [data], fds)
            except OSError as error:
                spare.discard()
                if last or not isinstance(error, ConnectionError):
                    raise
            else:
                return spare
        raise AssertionError("the second try returns or raises")

    def _fork_ahead(self, *, warm: bool = True) -> None:
        """Fork a worker for the next request. If that fails now, the request itself will report the error."""
        try:
            self._spare = self._fork(warm=warm)
        except OSError as error:
            self._log.write(f"cannot fork a spare worker: {error.strerror}")
            self._poll.poll()  # wait for the next event before another try
        else:
            # This process, too, copies each page at its next write: do it now instead of at the next request.
            if self._warm_up is not None:
                with contextlib.suppress(OSError):  # no descriptor is left; the request will report it
                    self._warm_up.pass_on()

    def _fork(self, *, warm: bool = False) -> _Spare:
        """Fork a worker, which first warms up if asked. Raises OSError."""
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            with theirs:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, protocol.MESSAGE_MAX)
                output, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                undo.callback(os.close, output)
                try:
                    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, OUTPUT_MAX)
                    pid = fork()
                    if pid == 0:
                        ours.close()
                        self._child(theirs, writer, warm=warm)
                finally:
                    os.close(writer)
                spare = _Spare(pid, open_child(pid), ours, output)
            undo.pop_all()
        return spare

    def _child(self, sock: socket.socket, output: int, *, warm: bool) -> None:
        """In the new process: keep only the spawner's memory, wait for a task, and never return."""
        status = 70
        try:
            self._sock.close()
            warm_up = self._warm_up if warm else None
            kept = {sock.fileno()} | self._kernel.descriptors | self._cgroups.descriptors
            keep_only(kept if warm_up is None else kept | warm_up.descriptors, output)
            if warm_up is not None:
                with contextlib.suppress(Exception):  # the task will get the same error, and can report it
                    warm_up.run(self._operations, self._kernel, self._cgroups)
            setproctitle.setproctitle("ktaskfs: spare worker")
            data, fds, _ = protocol.receive(sock)
            sock.close()
            if data:  # else the spawner has ended
                request = protocol.decode(data)
                if isinstance(request, protocol.LookRequest):
                    look(request, self._kernel, fds, self._cgroups)
                    status = 0
                elif isinstance(request, protocol.TouchRequest):
                    touch(*fds)
                    status = 0
                else:
                    assert isinstance(request, protocol.StartRequest)
                    operation = self._operations[request.operation]
                    status = Worker(request, operation, self._kernel, fds, self._cgroups).run()
            else:
                status = 0
        except BaseException as error:
            report(error)
        finally:
            os._exit(status)

    def _open_warm_up(self) -> WarmUp | None:
        try:
            return WarmUp.open()
        except (OSError, KtaskfsError) as error:
            self._log.write(f"workers cannot warm up; starts are slower: {error}")
            return None

    def _pass_on(self, child: _Child) -> None:
        """Log the standard error of an ended worker, with its pid before each line."""
        with contextlib.suppress(BlockingIOError):  # it is empty, and another process has the other end
            for line in os.read(child.output, OUTPUT_MAX).decode(errors="replace").splitlines():
                shown = "".join(each if each.isprintable() else "?" for each in line)
                self._log.write(f"process {child.pid}: {shown}")
        os.close(child.output)


def serve_on(sock: socket.socket, operations: Mapping[str, SpecWord]) -> None:
    """Be the spawner until the daemon closes the other end of ``sock``, and keep no other descriptor of it."""
    close_all_but({sock.fileno()})
    os.chdir("/")
    setproctitle.setproctitle("ktaskfs: spawner")
    # Workers inherit the blocked signals, and wait for them with sigwait(3) from their first instruction on.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_IGN)
    Spawner(sock, operations).serve()


def main() -> None:
    """``python -m ktaskfs.worker.spawner FD``: serve on the inherited socket ``FD``."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    serve_on(sock, find_operations())


if __name__ == "__main__":
    main()
