"""Who has a page as its worker: the process with a record lock on it, which ends with the process. fcntl(2).

A later daemon needs it where /proc hides the worker (hidepid): an ordinary user's daemon may not look at it, because it
is not dumpable.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from typing import Final

_FLOCK: Final = struct.Struct("@hhqqi0q")
"""struct flock: kind, whence, start, length, pid."""


def mark_as_worker(fd: int) -> None:
    """Mark this process as the worker of the page in ``fd``, until it closes any descriptor of the file.

    Fails silently on a filesystem without locks.
    """
    with contextlib.suppress(OSError):
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)


def worker_of(fd: int) -> int | None:
    """The pid of the worker of the page in ``fd``; None if it has ended. Raises OSError."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else pid
