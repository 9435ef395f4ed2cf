"""The kernel's own files, held open.

A worker changes its root to its caller's, where /proc, /sys and /dev may be missing or made by the caller. So it
opens descriptors first, and later reads by name below them.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs import mounts
from ktaskfs.errors import NotPermitted
from ktaskfs.host.cgroups import GroupMounts
from ktaskfs.host.files import list_directory, read_file

if TYPE_CHECKING:
    from collections.abc import Callable

LEASE_BREAK_TIME: Final = 45
"""Seconds after which the kernel usually breaks a lease (fs.lease-break-time); used if it never does (0)."""
_LEASE_GRACE: Final = 5
_LEASE_PAUSE: Final = 0.01
_LEASE_PAUSE_MAX: Final = 0.1
"""Seconds between two tries to open a file with a lease, at first and at most."""


def _never() -> bool:
    return False


class Kernel(NamedTuple):
    """O_PATH descriptors of /proc and /sys, /dev/zero open for reading, and the mounts of control groups.

    They stay valid across fork(2): ``self`` below the descriptor of /proc means the process that
    looks it up. ``abandoned`` returns whether the daemon gave up this start, so that the process stops waiting.
    """

    proc: int
    sys: int
    zero: int
    cgroups: GroupMounts = GroupMounts({})
    abandoned: Callable[[], bool] = _never

    @classmethod
    def open(cls) -> Kernel:
        """Open them now; raises OSError."""
        zero = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
        return cls(mounts.open_mount("/proc"), mounts.open_mount("/sys"), zero, GroupMounts.open())

    @classmethod
    def open_read_only(cls) -> Kernel:
        """Open read-only copies of these mounts, without submounts.

        Without CAP_SYS_ADMIN, or before Linux 5.12, open the mounts themselves. Raises OSError.
        """
        zero = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
        proc, sys = (mounts.open_harmless(path) for path in ("/proc", "/sys"))
        return cls(proc, sys, zero, GroupMounts.open_read_only())

    @property
    def descriptors(self) -> frozenset[int]:
        """All its descriptors."""
        return frozenset({self.proc, self.sys, self.zero}) | self.cgroups.descriptors

    def close(self) -> None:
        """Close all of them."""
        for fd in self.descriptors:
            os.close(fd)

    def read_sys(self, path: str) -> str:
        """The text of a file below /sys, without the white space around it; raises OSError or NotPermitted."""
        return _read(self.sys, "/sys", path).strip()

    def read_proc(self, path: str) -> str:
        """The text of a file below /proc; raises OSError or NotPermitted."""
        return _read(self.proc, "/proc", path)

    def list_sys(self, path: str) -> list[str]:
        """The sorted names in a directory below /sys; empty if there is no such directory."""
        try:
            return sorted(list_directory(path, self.sys))
        except FileNotFoundError:
            return []

    def reopen(self, fd: int, flags: int) -> int:
        """Open the file of an O_PATH descriptor, with the access checks of an ordinary open(2)."""
        return os.open(f"self/fd/{fd}", flags | os.O_CLOEXEC, dir_fd=self.proc)

    def reopen_file(self, fd: int, flags: int, *, patience: float | None = None) -> int:
        """Like ``reopen``, for a regular file on which another process may have a lease (fcntl(2), F_SETLEASE).

        The first try makes the kernel ask that process to release it. Then wait until ``abandoned``, at most
        ``patience`` seconds, by default as long as the kernel allows. Raises OSError, EAGAIN if the lease still exists.
        """
        pause, deadline = _LEASE_PAUSE, None
        while True:
            try:
                return self.reopen(fd, flags | os.O_NONBLOCK)
            except BlockingIOError:
                if deadline is None:
                    deadline = time.monotonic() + (self._lease_time() if patience is None else patience)
                if time.monotonic() >= deadline or self.abandoned():
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LEASE_PAUSE_MAX)

    def link(self, fd: int, name: str, directory: int) -> None:
        """Give an open file (O_TMPFILE) a name in a directory; raises OSError, EEXIST for a name that is taken."""
        os.link(f"self/fd/{fd}", name, src_dir_fd=self.proc, dst_dir_fd=directory, follow_symlinks=True)

    def _lease_time(self) -> float:
        """Seconds after which no lease is left: a little more than the kernel's own limit."""
        return (int(self.read_proc("sys/fs/lease-break-time")) or LEASE_BREAK_TIME) + _LEASE_GRACE

    def available_memory(self, *, swap: bool = True) -> int:
        """Available bytes, without any kill, including free ``swap`` (MemAvailable is an estimate)."""
        lines = (line.split() for line in self.read_proc("meminfo").splitlines())
        values = {words[0]: int(words[1]) << 10 for words in lines if words[-1] == "kB"}
        return values["MemAvailable:"] + (values["SwapFree:"] if swap else 0)


def _read(directory: int, point: str, path: str) -> str:
    """Bytes decoded as UTF-8, which is built into the interpreter: other codecs need an import."""
    try:
        return read_file(path, directory).decode(errors="replace")
    except PermissionError as error:  # everybody may read these files, so the process's label forbids it
        raise NotPermitted(f"{point}/{path} cannot be read: {error.strerror}", errno=error.errno) from error
