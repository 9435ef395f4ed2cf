"""Wakes waiters in poll(2) on files that were opened at a dead server.

The kernel numbers opened files from 1 on (fuse_file_alloc in fs/fuse/file.c). After FUSE_NOTIFY_POLL with such a number
it polls the file again, which then fails: poll(2) reports POLLERR. It ignores an unknown number.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK: Final = 1 << 16
"""Opens after which the bound is stored again; and the allowance for opens that failed before the server saw them."""
AT_ONCE: Final = 10_000
"""Wakes at a time, which take some 15 ms."""
_NOTIFY_POLL: Final = 1


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
        """One more."""
        self._count += 1
        if self._count > self.bound:
            self.bound = self._count + BLOCK
            self.remember(self.bound)


async def wake_all(device: int, bound: int) -> None:
    """Wake waiters of all files with numbers up to ``bound``, the newest first."""
    for last in range(bound + BLOCK, 0, -AT_ONCE):
        await trio.to_thread.run_sync(_wake, device, max(last - AT_ONCE, 0), last)


def _wake(device: int, first: int, last: int) -> None:
    with contextlib.suppress(OSError):  # the mount is gone
        for number in range(last, first, -1):
            os.write(device, struct.pack("=IiQQ", 24, _NOTIFY_POLL, 0, number))
