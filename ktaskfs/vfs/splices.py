"""What the kernel reads when a program splices a stream, told from what programs read themselves."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from ktaskfs.vfs.refusals import NotSpliced

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE: Final = os.sysconf("SC_PAGE_SIZE")
SHOWN_SIZE: Final = 2 * PAGE + 1
"""st_size of a stream."""
SPLICE_SIZE: Final = 3 * PAGE
"""What the kernel reads at first for splice(2): all pages of a file of that size, which is the least that it reads
ahead. No program has a buffer of this size, not even one that takes st_size for it."""
LATELY: Final = 0.25
"""Seconds between the look at a file's name and the first read, at most."""


class Splices:
    """When each stream of a mount was last spliced, by its inode number."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._last: dict[int, float] = {}

    def refused(self, ino: int) -> None:
        """A read for a splice of this stream has failed just now."""
        now = self.now()
        self._last = {each: when for each, when in self._last.items() if now - when <= LATELY}
        self._last[ino] = now

    def since(self, ino: int, moment: float) -> bool:
        """Whether one has failed at ``moment`` or later."""
        return self._last.get(ino, moment - 1) >= moment


class Reads:
    """The reads of one opening of a stream.

    Since Linux 6.5 splice(2) reads a FUSE file through the page cache, which takes a short read for the end of the
    file. Only an error makes programs read(2) instead. The kernel reads SPLICE_SIZE for it, and after an error the
    first page once more. Where that page is left from somebody else's splice, the kernel reads it alone: after such
    a splice a program that begins with one page is not believed. (A look at the name takes the page away.)

    A program that reads as much as st_size says gets an error before that comes to its end.
    """

    __slots__ = ("_first", "_ino", "_last", "_opened", "_splices")

    def __init__(self, ino: int, splices: Splices) -> None:
        self._ino = ino
        self._splices = splices
        self._opened = splices.now()
        self._first = self._last = 0

    def check(self, offset: int, size: int) -> None:
        """Raise NotSpliced if the next read, of ``size`` at ``offset``, takes the stream for a file of SHOWN_SIZE."""
        first, last = self._first, self._last
        self._first, self._last = first or size, size
        if offset == 0 and (size == SPLICE_SIZE or (size == PAGE and self._left_over(first, last))):
            self._splices.refused(self._ino)
            raise NotSpliced("a stream cannot be spliced")
        if first == SHOWN_SIZE and offset + size == SHOWN_SIZE and size <= SHOWN_SIZE // 2:
            raise NotSpliced("a stream has no size: read it to its end")

    def _left_over(self, first: int, last: int) -> bool:
        return last == SPLICE_SIZE or (not first and self._splices.since(self._ino, self._opened - LATELY))
