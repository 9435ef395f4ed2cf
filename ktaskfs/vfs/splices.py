"""Distinguishes the kernel's reads for splice(2) of a stream from a program's own reads."""

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
"""The kernel's first read for splice(2): all pages of a file of that size, its minimum readahead. No program has a
buffer of this size, not even one that uses st_size."""
LATELY: Final = 0.25
"""Maximum seconds between the lookup of a file and the first read."""


class Splices:
    """The time of the last splice(2) of each stream of a mount, by inode number."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._last: dict[int, float] = {}

    def refused(self, ino: int) -> None:
        """A read for a splice of this stream has just failed."""
        now = self.now()
        self._last = {each: when for each, when in self._last.items() if now - when <= LATELY}
        self._last[ino] = now

    def since(self, ino: int, moment: float) -> bool:
        """Whether one has failed at ``moment`` or later."""
        return self._last.get(ino, moment - 1) >= moment


class Reads:
    """The reads of one opening of a stream.

    Since Linux 6.5 splice(2) reads a FUSE file through the page cache, which treats a short read as the end of the
    file. Only an error makes programs use read(2) instead. The kernel reads SPLICE_SIZE for it, and after an error the
    first page again. If that page remains from another splice, the kernel reads only this page: so after a splice, a
    first read of one page counts as a splice. (A lookup and an open drop the pages.)

    If another program's open drops some of the pages meanwhile, the kernel reads the missing pages ahead, and the first
    page again; if the program splices again, the first page too. So after one refusal every read of the first page is
    refused, and a read of the first two pages unless the last refusal was of the first page: programs fall back to
    larger buffers (cp of uutils 2 pages, busybox 16). A read beyond the delivered bytes is always refused. A first read
    of two pages is taken for a program's own, because tail(1) and sed(1) read two pages; this is a guess. A program
    that reads st_size bytes gets an error before the end.
    """

    __slots__ = ("_first", "_ino", "_last", "_opened", "_refused", "_splices")

    def __init__(self, ino: int, splices: Splices) -> None:
        self._ino = ino
        self._splices = splices
        self._opened = splices.now()
        self._first = 0
        self._refused: tuple[int, int] | None = None
        """Offset and size of the last refused read."""

    def check(self, offset: int, size: int, given: int) -> None:
        """Raise NotSpliced if a read of ``size`` at ``offset``, after ``given`` bytes, treats the stream as a file of
        SHOWN_SIZE."""
        is_first, self._first = not self._first, self._first or size
        if offset > given or (offset == 0 and self._is_splice(size, is_first=is_first)):
            self._refused = (offset, size)
            self._splices.refused(self._ino)
            raise NotSpliced("a stream cannot be spliced")
        if self._first == SHOWN_SIZE and offset + size == SHOWN_SIZE and size <= SHOWN_SIZE // 2:
            raise NotSpliced("a stream has no size: read it to its end")

    def _is_splice(self, size: int, *, is_first: bool) -> bool:
        if self._refused is None:
            left_over = is_first and self._splices.since(self._ino, self._opened - LATELY)
            return size == SPLICE_SIZE or (size == PAGE and left_over)
        return size in {PAGE, SPLICE_SIZE} or (size == 2 * PAGE and self._refused != (0, PAGE))
