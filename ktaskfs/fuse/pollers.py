"""Wakes waiters in poll(2), also on files that were opened at a dead server.

The kernel numbers opened files from 1 on (fuse_file_alloc in fs/fuse/file.c). After FUSE_NOTIFY_POLL with such a number
it polls the file again, which then fails: poll(2) reports POLLERR. It ignores an unknown number.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyfuse3

BLOCK: Final = 1 << 16
"""Opens after which the bound is stored again; and the allowance for opens that failed before the server saw them."""
AT_ONCE: Final = 200
"""Wakes at a time, which take some 0.3 ms: none waits."""
NOBODY: Final = frozenset({errno.ENODEV, errno.ENOTCONN, errno.ENOENT})
"""The errors of a notification after the end of the mount."""
_NOTIFY_POLL: Final = 1

log = logging.getLogger(__name__)


class Openings:
    """Counts the kernel's opens. ``remember`` gets an upper bound, valid until the next call."""

    def __init__(self) -> None:
        self.bound = 0
        self.remember: Callable[[int], object] = int
        self._count = 0

    def begin(self, count: int) -> None:
        """Continue from the upper bound of earlier servers."""
        self._count = self.bound = count
        self.note()

    def note(self) -> None:
        """Count one open."""
        self._count += 1
        if self._count > self.bound:
            self.bound = self._count + BLOCK
            self.remember(self.bound)


def wake(handle: pyfuse3.PollHandle) -> None:
    """Wake the waiters of one open file."""
    try:
        handle.notify()
    except OSError as error:
        if error.errno not in NOBODY:
            log.exception("cannot wake a poll")


async def wake_all(device: int, bound: int) -> None:
    """Wake waiters of all files with numbers up to ``bound``, the newest first."""
    for last in range(bound + BLOCK, 0, -AT_ONCE):
        _wake_numbers(device, max(last - AT_ONCE, 0), last)
        await trio.lowlevel.checkpoint()


def _wake_numbers(device: int, first: int, last: int) -> None:
    with contextlib.suppress(OSError):  # the mount is gone
        for number in range(last, first, -1):
            os.write(device, struct.pack("=IiQQ", 24, _NOTIFY_POLL, 0, number))
