"""Facts about a living process or thread from /proc, proc(5), and a descriptor of a child."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
from typing import Final

from ktaskfs.libc import bind

_clock_of: Final = bind("clock_getcpuclockid", ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
"""Returns 0 or an errno."""


def thread_cpu(pid: int, tid: int) -> int | None:
    """The CPU that the thread ran on last; None if there is no such thread."""
    fields = _stat(f"/proc/{pid}/task/{tid}/stat")
    return int(fields[36]) if fields else None


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal or a tracer (state T or t)."""
    fields = _stat(f"/proc/{pid}/stat")
    return bool(fields) and fields[0] in (b"T", b"t")


def cpu_time(pid: int) -> int:
    """Nanoseconds for which the process has been on a CPU; 0 if there is no such process. clock_getcpuclockid(3).

    It needs no descriptor, and no right to look at the process.
    """
    clock = ctypes.c_int()
    if _clock_of(pid, ctypes.addressof(clock)):
        return 0
    try:
        return time.clock_gettime_ns(clock.value)
    except OSError:  # it has just ended
        return 0


def _stat(path: str) -> list[bytes]:
    """The fields from the third on: the second, the name, may hold spaces and parentheses.

    Empty if it has ended, if no descriptor is left, or if /proc (hidepid) or its label hides it.
    """
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EPERM, errno.EACCES, errno.EMFILE, errno.ENFILE):
            raise
        return []
    return text[text.rindex(b")") + 1 :].split()


def open_child(pid: int) -> int:
    """A pidfd of the child ``pid``. On failure ends the child and raises OSError."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
