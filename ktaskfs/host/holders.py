"""Find other processes that have a file open or mapped, and the workers of ktaskfs among them.

A worker marks its file with a shared record lock on a byte past the end of every file. /proc/locks shows every lock
with its process to everybody, while a worker's descriptors are hidden from other workers of the same user, because it
is not dumpable.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import NotPermitted
from ktaskfs.host import statx
from ktaskfs.host.files import list_directory
from ktaskfs.host.maps import read_areas
from ktaskfs.host.may_hang import answers_in_time
from ktaskfs.units import escaped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.host.kernel import Kernel

_MARK: Final = 0x6B7461736B6673  # "ktaskfs": an offset of 27 PiB, that nobody else locks by chance
PATIENCE: Final = 0.5
"""Maximum delay in seconds by processes whose mappings cannot be read."""


class Holder(NamedTuple):
    """A process that has the file open or mapped; ``name`` is its comm."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{escaped(self.name)} ({self.pid})"


def mark(fd: int) -> None:
    """Mark this process as a worker on the file of ``fd``, until it closes any descriptor of the file.

    Fails silently if somebody else locks the whole file, or the filesystem has no locks.
    """
    with contextlib.suppress(OSError):
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _MARK)


def workers_at(kernel: Kernel, fd: int) -> set[int]:
    """The pids of the other workers that have marked the file of ``fd``; proc_locks(5)."""
    file = os.fstat(fd)
    where = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    mark = ["READ", where, str(_MARK), str(_MARK)]
    locks = (line.split() for line in kernel.read_proc("locks").splitlines())
    return {int(lock[4]) for lock in locks if lock[1] == "POSIX" and [lock[3], *lock[5:]] == mark} - {os.getpid()}


def is_held(fd: int) -> bool | None:
    """Whether anybody else has the file of ``fd`` open or mapped, visible to this process or not.

    None if unknown: the caller neither owns the file nor has CAP_LEASE.
    """
    try:
        with _leased(fd):
            return False
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None


@contextlib.contextmanager
def alone_with(fd: int) -> Iterator[bool]:
    """Whether nobody else has the file of ``fd`` open or mapped, as far as the kernel knows.

    If so, other opens wait (or get EWOULDBLOCK) until the end of this context, at most for
    /proc/sys/fs/lease-break-time.
    """
    with contextlib.ExitStack() as stack:
        alone = False
        with contextlib.suppress(OSError):
            stack.enter_context(_leased(fd))
            alone = True
        yield alone


@contextlib.contextmanager
def _leased(fd: int) -> Iterator[None]:
    """Hold a write lease, which the kernel grants only on a file that nobody else has open (fcntl(2), F_SETLEASE).

    A memfd's first descriptor does not count (alloc_file_pseudo() in fs/file_table.c takes no write access). Raises
    OSError: EAGAIN if others have it open.
    """
    # An open(2) by somebody else meanwhile sends a signal to the lease's owner; this one is ignored by default.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        yield
    finally:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def holders_of(kernel: Kernel, fd: int) -> list[Holder]:
    """The other processes that have the file of ``fd`` open or mapped, as far as the caller may examine them (proc(5),
    PTRACE_MODE_READ).

    A process can make reads of its mappings hang, and is then left out.
    """
    file = os.fstat(fd)
    wanted = file.st_dev, file.st_ino

    def holder(pid: int) -> Holder | None:
        with contextlib.suppress(OSError, NotPermitted):  # it has ended, or may not be examined
            if wanted in _opened(kernel.proc, pid) or wanted in _mapped(kernel.proc, pid):
                stat = kernel.read_proc(f"{pid}/stat")
                return Holder(pid, stat.partition("(")[2].rpartition(")")[0])
        return None

    pids = {int(name) for name in list_directory(".", kernel.proc) if name.isdecimal()} - {os.getpid()}
    answers = answers_in_time(holder, pids, PATIENCE, kernel.proc)
    found = [answer for _, answer in answers if answer is not None]
    return sorted(found, key=lambda each: each.pid)


def _opened(proc: int, pid: int) -> Iterator[tuple[int, int]]:
    """Device and inode of each file that the process has open. Raises OSError.

    A read of fdinfo could wait for a lock that the process holds (epoll(7)), and then nobody could kill this process.
    """
    for fd in list_directory(f"{pid}/fd", proc):
        path = f"{pid}/fd/{fd}"
        with contextlib.suppress(OSError):  # it was closed
            if os.readlink(path, dir_fd=proc).startswith("/"):
                yield statx.file_status(proc, path)[:2]


def _mapped(proc: int, pid: int) -> Iterator[tuple[int, int]]:
    """Device and inode of each file that the process has mapped. Raises OSError."""
    return ((area.device, area.inode) for area in read_areas(proc, f"{pid}/maps") if area.inode or area.is_shared)
