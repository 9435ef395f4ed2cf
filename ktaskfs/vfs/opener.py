"""The process that opened a file, from /proc: has it closed the file, and did a signal end it? FUSE reports each
close(2) but not its caller.

A fork that shares the descriptor may close its copy at any moment.
"""

from __future__ import annotations

import itertools
import os
from typing import Final

FDS_MAX: Final = 256
"""Maximum descriptors of a process to check: each takes some microseconds."""
PF_EXITING: Final = 0x4
"""A flag in field 9 of /proc/PID/stat (include/linux/sched.h)."""
_FLAGS: Final = 9
_EXIT_CODE: Final = 52
_READ_MAX: Final = 64 << 10
"""Bytes of a file to read: in the status, up to 11 for each of the process's groups come before its memory."""
_SIGNAL: Final = 0x7F
"""The bits of a wait status that name the signal."""


class Opener:
    """Process (or thread) ``pid``, which has opened the inode ``ino``; pid 0 for an invisible one."""

    __slots__ = ("_ino", "_pid")

    def __init__(self, pid: int, ino: int) -> None:
        self._pid = pid
        self._ino = ino

    def has_it_open(self) -> bool | None:
        """Whether it has the inode open. None if unknown: it has too many files open, is invisible, or gone (a thread
        whose process may have it open).

        An inode of another filesystem with the same number counts, too.
        """
        if not self._pid:
            return None
        try:
            with os.scandir(f"/proc/{self._pid}/fd") as entries:
                names = [entry.path for entry in itertools.islice(entries, FDS_MAX + 1)]
        except OSError:
            return None
        if len(names) > FDS_MAX:
            return None
        return any(_inode_number(name) == self._ino for name in names)

    def was_killed(self) -> bool:
        """Whether a signal is ending it; False if it is gone or invisible."""
        # During execve(2), which closes files, a read of its stat waits (Linux 6.18) until this server has answered the
        # close. A process with memory is not ending, and its status never waits.
        if b"\nVmSize:" in _read(f"/proc/{self._pid}/status"):
            return False
        stat = _read(f"/proc/{self._pid}/stat")
        fields = stat[stat.rfind(b")") + 1 :].split()  # from field 3 on
        if len(fields) <= _EXIT_CODE - 3:
            return False
        exiting = int(fields[_FLAGS - 3]) & PF_EXITING
        return bool(exiting and int(fields[_EXIT_CODE - 3]) & _SIGNAL)


def _inode_number(path: str) -> int | None:
    """The inode number of an open file; None if it was closed.

    Nothing here waits for the file's owner: a read of its fdinfo may wait for a lock (epoll(7)), stat(2) for a server.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        words = _read(f"/proc/self/fdinfo/{fd}").split()
    finally:
        os.close(fd)
    return int(words[words.index(b"ino:") + 1]) if b"ino:" in words else None  # Linux 5.14 or later


def _read(path: str) -> bytes:
    """A file of /proc, empty if it is gone or may not be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_READ_MAX) or b""
    except OSError:
        return b""
