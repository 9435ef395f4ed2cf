"""The spawner: a small single-threaded process that forks the workers.

It has imported everything that a worker needs, since an unprivileged worker may not be able to read the
installation, and a fork of it takes a millisecond where a new interpreter takes fifty. It is the daemon's child,
ends when the daemon does, and leaves its workers running: they then belong to init.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import sys
import traceback

import setproctitle

from ktaskfs.host.kernel import Kernel
from ktaskfs.operations.registry import find_operations
from ktaskfs.worker import protocol
from ktaskfs.worker.run import Worker


class Spawner:
    """Forks on request and tells how each worker ended; ``serve`` runs until the daemon is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._operations = find_operations()
        self._kernel = Kernel.open()
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)
        self._children: dict[int, tuple[int, int]] = {}
        """pidfd of each living worker: the ticket of its request, and its pid."""

    def serve(self) -> None:
        """Answer requests until the daemon closes the socket."""
        gc.collect()
        gc.freeze()
        while True:
            for fd, _ in self._poll.poll():
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
            pid = self._fork(request, fds)
            pidfd = _open_child(pid)
        except OSError as error:
            protocol.send(self._sock, protocol.Forked(request.ticket, 0, error.errno or errno.EIO))
            return
        self._children[pidfd] = (request.ticket, pid)
        self._poll.register(pidfd, select.POLLIN)
        protocol.send(self._sock, protocol.Forked(request.ticket, pid, 0), [pidfd])

    def _fork(self, request: protocol.StartRequest, fds: list[int]) -> int:
        pid = os.fork()
        if pid == 0:
            self._child(request, fds)
        return pid

    def _child(self, request: protocol.StartRequest, fds: list[int]) -> None:
        """In the new process: keep nothing of the spawner but its memory, and never return."""
        status = 70
        try:
            self._sock.close()
            for pidfd in self._children:
                os.close(pidfd)
            status = Worker(request, self._operations[request.operation], self._kernel, fds).run()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)


def _open_child(pid: int) -> int:
    """A pidfd of our child ``pid``; raises OSError, and there is then no such child any more."""
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
    # Blocked here, so that a worker can be woken from its first instruction; it takes them with sigwait(3).
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_IGN)
    Spawner(sock).serve()


if __name__ == "__main__":
    main()
