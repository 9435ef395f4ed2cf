"""The spawner: a small single-threaded process that forks the workers.

It has imported everything that a worker needs, since an unprivileged worker may not be able to read the
installation, and a fork of it takes a millisecond where a new interpreter takes fifty. It is the daemon's child,
ends when the daemon does, and leaves its workers running: they then belong to init.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys

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
        """pidfd of each living worker: its task and pid."""

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
        task, pid = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        protocol.send(self._sock, protocol.Exited(task, status))

    def _request(self) -> bool:
        """Read one request and fork; False when the daemon is gone."""
        data, fds, flags, _ = socket.recv_fds(self._sock, protocol.MESSAGE_MAX, protocol.FDS_MAX)
        if not data:
            return False
        request = protocol.decode(data)
        if not isinstance(request, protocol.StartRequest) or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError(f"not a request: {data[:200]!r}")
        try:
            pid = os.fork()
        except OSError as error:
            protocol.send(self._sock, protocol.Forked(request.task, 0, error.errno or 0))
            return True
        if pid == 0:
            self._child(request, fds)
        for fd in fds:
            os.close(fd)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = (request.task, pid)
        self._poll.register(pidfd, select.POLLIN)
        protocol.send(self._sock, protocol.Forked(request.task, pid, 0), [pidfd])
        return True

    def _child(self, request: protocol.StartRequest, fds: list[int]) -> None:
        """In the new process: keep nothing of the spawner but its memory, and never return."""
        status = 70
        try:
            self._sock.close()
            for pidfd in self._children:
                os.close(pidfd)
            status = Worker(request, self._operations[request.operation], self._kernel, fds).run()
        finally:
            sys.stderr.flush()
            os._exit(status)


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
