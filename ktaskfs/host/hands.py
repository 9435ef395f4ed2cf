"""Hands: child processes that touch mappings, where a touch may end in SIGBUS, so that the worker never does.

A hand is forked from the worker, so it is sealed in the same way: the same user, capabilities, label, control groups,
limits. It has a copy of the worker's memory, and only selected descriptors. A thread of the
worker sends it a chunk over a socket and waits for the answer. If a hand dies, the thread does the chunk itself through
system calls, which succeed or fail with the right error.

Only a single-threaded process can fork without the risk that a lock of some library stays taken for good. So ``Hands``
are made before the worker starts threads; if an earlier thread hangs, there are none. They begin with one child that
only forks hands on request. It makes them the worker's children (CLONE_PARENT), not its own. The kernel kills all of
them when the worker's first thread ends, and with it the worker (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import socket
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from ktaskfs.descriptors import close_all_but
from ktaskfs.host import syscalls
from ktaskfs.host.holders import mark

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ktaskfs.host.kernel import Kernel

_CHUNK: Final = struct.Struct("=QQ")
_PID: Final = struct.Struct("=i")
_ANSWER_MAX: Final = 16 << 10
_MISSES_MAX: Final = 64
"""Failed minus successful chunks after which hands are no longer used: the file then consists mostly of holes, and a
hand takes 0.1 ms to find one."""
_DONE: Final = b"+"
_NOT_DONE: Final = b"-"


@dataclass
class _Hand:
    """A hand as the worker sees it; ``cpus`` and ``nice`` are its last settings."""

    pid: int
    sock: socket.socket
    nice: int
    cpus: bytes = b""

    def ask(self, start: int, end: int, nice: int) -> bytes:
        """Let the hand do a chunk with the CPUs and nice value of the calling thread; returns the answer, empty if the
        hand died. Raises OSError."""
        cpus = syscalls.cpu_mask()
        if cpus != self.cpus:
            with contextlib.suppress(OSError):  # the cpuset has none of them now, or a label forbids it
                syscalls.set_cpu_mask(self.pid, cpus)
            self.cpus = cpus
        if nice != self.nice:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self.pid, nice)
            self.nice = nice
        self.sock.send(_CHUNK.pack(start, end))
        return self.sock.recv(_ANSWER_MAX)


class Hands:
    """The hands of one task, one for each thread that uses one at the same time.

    A hand calls ``touch`` for a chunk, from one position to another; the worker gets its result, and any exception
    means that the hand cannot do the chunk. It keeps ``descriptors``. There are at most ``most`` hands. Their working
    directory is /proc, so that they block no unmount.
    """

    def __init__(
        self, kernel: Kernel, touch: Callable[[int, int], bytes], descriptors: Collection[int], most: int
    ) -> None:
        """If no process can be forked, or this one has other threads (``may_hang``), there are no hands."""
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._resources = contextlib.ExitStack()
        self._lock = threading.Lock()  # guards everything below
        self._idle: list[_Hand] = []
        self._pids: set[int] = set()
        """The pids of all children that are not reaped yet."""
        self._more = 0
        """How many more hands may be made: none after a failed fork or the death of a hand."""
        self._misses = 0
        worker = os.getpid()
        if threading.active_count() > 1:
            return
        with contextlib.suppress(OSError):  # at the limit of processes, of memory or of descriptors
            self._forker, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._resources.callback(self._forker.close)
            with theirs:
                # Not syscalls.fork: if this is no worker, another thread may wait for the interpreter's lock.
                pid = os.fork()
                if pid == 0:
                    _fork_hands(worker, theirs, kernel.proc, touch, descriptors)
            self._pids.add(pid)
            self._more = most

    def do(self, start: int, end: int) -> bytes | None:
        """A hand's answer for a chunk. None: there is no hand, or it could not do the whole chunk.

        In both cases no hand touches the chunk afterwards.
        """
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        hand = self._take(nice) if self._misses < _MISSES_MAX else None
        if hand is None:
            return None
        try:
            answer = hand.ask(start, end, nice)
        except OSError:
            answer = b""
        done = answer[:1] == _DONE
        with self._lock:
            self._misses = max(self._misses - 1, 0) if done else self._misses + 1
            if answer:
                self._idle.append(hand)
            else:
                self._make_no_more()
                hand.sock.close()
                self._end(hand.pid)
        return answer[1:] if done else None

    def _take(self, nice: int) -> _Hand | None:
        """An idle hand, or a new one; not one with a higher nice value, because not every user may lower it."""
        with self._lock:
            # The closest one: otherwise a thread takes another's hand, and that thread needs one more process.
            hand = max((each for each in self._idle if each.nice <= nice), key=lambda each: each.nice, default=None)
            if hand is not None:
                self._idle.remove(hand)
                return hand
            if not self._more:
                return None
            self._more -= 1
            try:
                hand = self._fork()
            except OSError:
                self._more, hand = 0, None
            if not self._more:
                self._make_no_more()
            return hand

    def _make_no_more(self) -> None:
        self._more = 0
        self._forker.close()  # then the process that forks them ends

    def _fork(self) -> _Hand:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                socket.send_fds(self._forker, [b"\0"], [theirs.fileno()])
                answer = self._forker.recv(_PID.size)
                if not answer:
                    raise ConnectionResetError
                (pid,) = _PID.unpack(answer)
                if pid < 0:
                    raise OSError(-pid, os.strerror(-pid))
            except BaseException:
                ours.close()
                raise
        self._pids.add(pid)
        return _Hand(pid, ours, self._nice)

    def _end(self, pid: int) -> None:
        """Reap a hand whose socket is closed."""
        self._pids.remove(pid)
        _kill(pid)
        os.waitpid(pid, 0)

    def close(self) -> None:
        """End all hands and wait for them. No thread may use one."""
        self._resources.close()
        for hand in self._idle:
            hand.sock.close()
        for pid in self._pids:  # all at once, as the end of each takes a millisecond
            _kill(pid)
        while self._pids:
            self._end(next(iter(self._pids)))


def _kill(pid: int) -> None:
    """Kill a child. If the caller's label forbids the signal, the child ends when its socket closes."""
    with contextlib.suppress(PermissionError):
        os.kill(pid, signal.SIGKILL)


def _fork_hands(
    worker: int, sock: socket.socket, proc: int, touch: Callable[[int, int], bytes], descriptors: Collection[int]
) -> NoReturn:
    """In the first child: fork a hand for each socket that comes."""
    try:
        os.fchdir(proc)
        _settle(worker, descriptors, sock.fileno())
        while True:
            data, fds, _, _ = socket.recv_fds(sock, 1, 1)
            if not data:
                break
            with socket.socket(fileno=fds[0]) as theirs:
                try:
                    pid = syscalls.clone_sibling()
                except OSError as error:
                    pid = -(error.errno or errno.EIO)
                if pid == 0:
                    sock.close()
                    _settle(worker, descriptors, theirs.fileno())
                    _serve(theirs, touch)
            sock.send(_PID.pack(pid))
    finally:
        os._exit(0)


def _settle(worker: int, descriptors: Collection[int], sock: int) -> None:
    """In a new child: die with the worker, leave no core, keep only these and the standard descriptors.

    Record locks are not inherited, so it marks the files like its worker.
    """
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != worker:  # it died before
        os._exit(0)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    for number in (signal.SIGBUS, signal.SIGSEGV):
        signal.signal(number, signal.SIG_DFL)
    close_all_but({*descriptors, sock})
    for fd in descriptors:
        mark(fd)
    gc.disable()


def _serve(sock: socket.socket, touch: Callable[[int, int], bytes]) -> NoReturn:
    """In a hand: do one chunk after another."""
    try:
        while request := sock.recv(_CHUNK.size):
            try:
                answer = _DONE + touch(*_CHUNK.unpack(request))
            except Exception:  # the worker retries through system calls, and reports the error
                answer = _NOT_DONE
            sock.send(answer if len(answer) <= _ANSWER_MAX else _NOT_DONE)
    finally:
        os._exit(0)
