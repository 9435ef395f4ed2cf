"""The spawner: a small single-threaded process that forks the workers.

It has imported everything that a worker needs, since an unprivileged worker may not be able to read the
installation. A fork of it takes a few milliseconds, and a new interpreter takes fifty. One worker is always forked in
advance, so that nobody waits even for the fork. The spawner is the daemon's child, ends when the daemon does, and
leaves its workers running: they then belong to init.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import socket
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

import setproctitle

from ktaskfs.host.kernel import Kernel
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.worker import protocol
from ktaskfs.worker.run import Worker
from ktaskfs.worker.warm_up import warm_up

if TYPE_CHECKING:
    from collections.abc import Sequence


QUIET_MS = 3
"""Milliseconds without a request after which a worker is forked in advance: a fork takes a CPU from the task that has
just been started, and tasks are often started in bursts."""


@dataclass(frozen=True)
class _Spare:
    """A worker that was forked in advance and waits on ``sock`` to be told its task."""

    pid: int
    pidfd: int
    sock: socket.socket


class Spawner:
    """Forks on request and tells how each worker ended; ``serve`` runs until the daemon is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._operations = find_operations()
        self._kernel = Kernel.open()
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)
        self._children: dict[int, tuple[int, int]] = {}
        """By pidfd of each living worker, the ticket of its request and its pid."""
        self._spare: _Spare | None = None

    def serve(self) -> None:
        """Answer requests until the daemon closes the socket."""
        gc.collect()
        gc.freeze()
        while True:
            ready = self._poll.poll(None if self._spare else QUIET_MS)
            if not ready and self._spare is None:
                self._fork_ahead()
            for fd, _ in ready:
                try:
                    if fd in self._children:
                        self._reap(fd)
                    elif not self._request():
                        return
                except ConnectionError:  # the daemon died while it was being answered
                    return

    def _reap(self, pidfd: int) -> None:
        ticket, pid = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        protocol.send(self._sock, protocol.Exited(ticket, status))

    def _request(self) -> bool:
        """Read one request and fork; False when the daemon is gone."""
        data, fds, flags, _ = socket.recv_fds(self._sock, protocol.MESSAGE_MAX, protocol.FDS_MAX)
        if not data:
            return False
        try:
            self._answer(data, fds, cut=bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)))
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _answer(self, data: bytes, fds: list[int], *, cut: bool) -> None:
        try:
            request = protocol.decode(data)
        except (ValueError, TypeError, KeyError) as error:
            print(f"the spawner was asked for nothing that it knows ({error}): {data[:200]!r}", file=sys.stderr)
            return
        if not isinstance(request, protocol.StartRequest):
            print(f"the spawner takes no {type(request).__name__}", file=sys.stderr)
            return
        try:
            if cut:  # there was no room for all the descriptors
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            worker = self._tell_a_worker(data, fds)
        except OSError as error:
            protocol.send(self._sock, protocol.Forked(request.ticket, 0, error.errno or errno.EIO))
            return
        self._children[worker.pidfd] = (request.ticket, worker.pid)
        self._poll.register(worker.pidfd, select.POLLIN)
        protocol.send(self._sock, protocol.Forked(request.ticket, worker.pid, 0), [worker.pidfd])

    def _tell_a_worker(self, data: bytes, fds: list[int]) -> _Spare:
        """Give the request to the spare worker, or to a new one if there is none or it has died. Raises OSError."""
        for last in (False, True):  # retry once; if that one dies too, give up
            spare, self._spare = self._spare or self._fork(fds), None
            try:
                with spare.sock:
                    socket.send_fds(spare.sock, [data], fds)
            except OSError as error:
                os.close(spare.pidfd)
                os.kill(spare.pid, signal.SIGKILL)
                os.waitpid(spare.pid, 0)
                if last or not isinstance(error, ConnectionError):
                    raise
            else:
                return spare
        raise AssertionError("the second try returns or raises")

    def _fork_ahead(self) -> None:
        """Fork a worker for the next request. If that fails now, the request itself will report the error."""
        try:
            self._spare = self._fork([])
        except OSError as error:
            print(f"no worker could be forked in advance: {error.strerror}", file=sys.stderr)
            self._poll.poll()  # wait for the next event before another try

    def _fork(self, held: Sequence[int]) -> _Spare:
        """Fork a worker, which closes the descriptors ``held`` for a request: it gets its own. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, protocol.MESSAGE_MAX)
        with theirs:
            try:
                pid = os.fork()
                if pid == 0:
                    ours.close()
                    self._child(theirs, held)
                return _Spare(pid, _open_child(pid), ours)
            except OSError:
                ours.close()
                raise

    def _child(self, sock: socket.socket, held: Sequence[int]) -> None:
        """In the new process: keep only the memory of the spawner, wait for a task, and never return."""
        status = 70
        try:
            self._sock.close()
            for fd in (*self._children, *held):
                os.close(fd)
            setproctitle.setproctitle("ktaskfs: spare worker")
            if not held:  # nobody waits for it yet
                with contextlib.suppress(Exception):  # the task will meet the same error, and can report it
                    warm_up(self._kernel)
            data, fds, _, _ = socket.recv_fds(sock, protocol.MESSAGE_MAX, protocol.FDS_MAX)
            sock.close()
            if data:  # else the spawner has ended
                request = protocol.decode(data)
                assert isinstance(request, protocol.StartRequest)
                status = Worker(request, self._operations[request.operation], self._kernel, fds).run()
            else:
                status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)


def _open_child(pid: int) -> int:
    """A pidfd of our child ``pid``. Raises OSError, after it has ended the child."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def main() -> None:
    """``python -m ktaskfs.worker.spawner FD``: serve on the inherited socket ``FD``."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    setproctitle.setproctitle("ktaskfs: spawner")
    # Workers inherit the blocked signals, and can be woken from their first instruction on; they use sigwait(3).
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_IGN)
    Spawner(sock).serve()


if __name__ == "__main__":
    main()
