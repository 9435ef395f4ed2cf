"""Those who wait in poll(2) for a file that they opened at a server which is dead: nothing else would wake them.

The kernel numbers what is opened from 1 on (fuse_file_alloc in fs/fuse/file.c). Told the number of a file
(FUSE_NOTIFY_POLL) it asks again, which then fails: poll(2) reports POLLERR. An unknown number means nothing to it.
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
"""Openings after which the bound is remembered anew; and how many may have failed before the server heard of them."""
AT_ONCE: Final = 10_000
"""Wakes in one go, which takes some 15 ms."""
_NOTIFY_POLL: Final = 1


class Openings:
    """Counts what the kernel asks to be opened. ``remember`` gets a bound that is not exceeded before the next one."""

    def __init__(self) -> None:
        self.bound = 0
        self.remember: Callable[[int], object] = int
        self._count = 0

    def begin(self, count: int) -> None:
        """Go on from what earlier servers have counted at most."""
        self._count = self.bound = count
        self.note()

    def note(self) -> None:
        """One more."""
        self._count += 1
        if self._count > self.bound:
            self.bound = self._count + BLOCK
            self.remember(self.bound)


async def wake_all(device: int, bound: int) -> None:
    """Wake whoever waits for a file with a number up to ``bound``, the newest first."""
    for last in range(bound + BLOCK, 0, -AT_ONCE):
        await trio.to_thread.run_sync(_wake, device, max(last - AT_ONCE, 0), last)


def _wake(device: int, first: int, last: int) -> None:
    with contextlib.suppress(OSError):  # the mount is gone
        for number in range(last, first, -1):
            os.write(device, struct.pack("=IiQQ", 24, _NOTIFY_POLL, 0, number))
