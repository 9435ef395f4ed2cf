"""Which other processes have a file open or mapped, and which of them are workers of ktaskfs.

A worker marks the file it works on with a shared record lock on one byte that no file has. /proc/locks shows every
lock with its process to everybody, while a worker's descriptors are hidden from other workers of the same user: it is
not dumpable.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.host.kernel import Kernel

_MARK: Final = 0x6B7461736B6673  # "ktaskfs": an offset of 27 PiB, which nobody else locks by chance


@dataclass(frozen=True)
class Holder:
    """A process that has the file open or mapped; ``name`` is its comm."""

    pid: int
    name: str

    def __str__(self) -> str:
        name = "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in self.name)
        return f"{name} ({self.pid})"


def mark(fd: int) -> None:
    """Show that this process is a worker at the file of ``fd``, until it closes any descriptor of the file.

    Not if somebody else has a lock on the whole file, or the filesystem knows no locks.
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
    """Whether anybody else has the file of ``fd`` open or mapped, seen by this process or not.

    The kernel grants a write lease only on a file that nobody else has open (fcntl(2), F_SETLEASE); the lease is given
    back at once. None if it does not tell: the caller neither owns the file nor has CAP_LEASE. A memfd's first
    descriptor does not count (alloc_file_pseudo() in fs/file_table.c takes no write access).
    """
    # An open(2) by somebody else meanwhile sends a signal to the lease's owner; this one is ignored by default.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def holders_of(kernel: Kernel, fd: int) -> list[Holder]:
    """The other processes that have the file of ``fd`` open or mapped, as far as the caller may look at them.

    A process shows its descriptors and mappings to whoever may trace it (proc(5), PTRACE_MODE_READ).
    """
    wanted = os.fstat(fd)
    found = []
    for name in _names(kernel.proc, "."):
        if name.isdecimal() and int(name) != os.getpid() and _holds(kernel.proc, name, wanted):
            with contextlib.suppress(OSError):  # it has just ended
                stat = kernel.read_proc(f"{name}/stat")
                found.append(Holder(int(name), stat.partition("(")[2].rpartition(")")[0]))
    return found


def _holds(proc: int, pid: str, wanted: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        for fd in _names(proc, f"{pid}/fdinfo"):
            with contextlib.suppress(OSError):
                # stat(2) asks the filesystem, which may hang: only for a file of the same inode number.
                if _inode(proc, f"{pid}/fdinfo/{fd}") == wanted.st_ino and os.path.samestat(
                    os.stat(f"{pid}/fd/{fd}", dir_fd=proc), wanted
                ):
                    return True
        return any(where == (wanted.st_dev, wanted.st_ino) for where in _mapped(proc, pid))
    return False


def _mapped(proc: int, pid: str) -> Iterator[tuple[int, int]]:
    """Device and inode of each file that the process has mapped. proc_pid_maps(5). Raises OSError."""
    fd = os.open(f"{pid}/maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    with os.fdopen(fd, "rb") as file:
        for line in file:
            _, _, _, device, inode, *_ = line.split(None, 5)
            if inode != b"0":
                major, minor = (int(part, 16) for part in device.split(b":"))
                yield os.makedev(major, minor), int(inode)


def _inode(proc: int, path: str) -> int | None:
    """The inode number in a file of /proc/PID/fdinfo (Linux 5.14 and later). Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        words = os.read(fd, 4096).split()
    finally:
        os.close(fd)
    return int(words[words.index(b"ino:") + 1]) if b"ino:" in words else None


def _names(directory: int, path: str) -> list[str]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)
