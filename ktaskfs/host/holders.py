"""Which other processes have a file open or mapped."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.host.kernel import Kernel


@dataclass(frozen=True)
class Holder:
    """A process that has the file open or mapped; ``parent`` is its parent's pid, ``name`` its comm."""

    pid: int
    parent: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.pid})"


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
                comm, _, rest = stat.partition("(")[2].rpartition(")")
                found.append(Holder(int(name), int(rest.split()[1]), comm))
    return found


def _holds(proc: int, pid: str, wanted: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        for fd in _names(proc, f"{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(f"{pid}/fd/{fd}", dir_fd=proc), wanted):
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


def _names(directory: int, path: str) -> list[str]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)
