"""The undo of fallocate: frees the pages that were missing before."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import NotSupported
from ktaskfs.host import syscalls
from ktaskfs.host.mapping import HoleGuard
from ktaskfs.host.presence import data_extents, gaps, hole_extents, missing_pages, zero_pages
from ktaskfs.host.target import FilesystemType
from ktaskfs.memory.guarded_pages import GuardedPages, map_guarded
from ktaskfs.memory.run_log import RunLog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.host.target import Target
    from ktaskfs.span import Span

UNDO_WINDOW: Final = 256 << 20
"""Bytes freed at a time, as in ``free``: nobody waits longer for the lock of the inode."""


class Undo:
    """Records which pages are missing before they are allocated, and frees those again."""

    def __init__(self, target: Target, extent: Span) -> None:
        """Raises NotSupported if the missing pages cannot be determined exactly."""
        self._target = target
        self._extent = extent
        self._pages: GuardedPages | None = None
        self._missing = RunLog()
        self.freed = RunLog()
        """Pages of hugetlbfs that were freed again."""
        self._lock = threading.Lock()
        self.kept = 0  # bytes in kept pages, to which somebody has written; guarded by _lock
        if target.filesystem is FilesystemType.HUGETLBFS:
            try:
                self._pages = map_guarded(target, extent, HoleGuard())
            except OSError as error:
                raise NotSupported(f"undo=1 needs userfaultfd here: {error.strerror}") from error
            return
        data = sum(run.size for run in data_extents(target.fd, 0, target.size()))
        if data + target.page_size <= target.allocated():  # data may end before its page, with the file
            raise NotSupported(
                f"undo=1: {target.path} has pages that were allocated but never written, and tmpfs does not say which"
            )

    def add(self, made: Span) -> None:
        """Record missing pages in the range that are already allocated."""
        made = made.cut(self._extent)
        if made.size > 0:
            self._missing.add(made.start, made.end)

    def record(self, start: int, end: int) -> None:
        """Record the missing pages of a chunk. Raises TargetError if there are too many runs of them, and OSError."""
        page = self._target.page_size
        if self._pages is None:
            runs: Iterator[Span] = hole_extents(self._target.fd, start, end)
        else:
            runs = missing_pages(self._pages.pages, start, end, page)
        for low, high in runs:
            low = -(-low // page) * page  # a hole at the end of the file begins inside a page
            if low < high:
                self._missing.add(low, high)

    def take_back(self, start: int, end: int) -> None:
        """Free the pages from ``start`` to ``end`` that were missing before, except those with data.

        Data written between the check and the call is lost. Raises OSError.
        """
        page = self._target.page_size
        for run in self._missing.within(start, end):
            for piece in run.windows(max(UNDO_WINDOW, page)):
                freed = 0
                for zeros in zero_pages(self._target.fd, piece.start, piece.end, page):
                    self._note_freed(zeros)
                    syscalls.punch_hole(self._target.fd, zeros.start, zeros.end)
                    freed += zeros.size
                with self._lock:
                    self.kept += piece.size - freed

    def _note_freed(self, run: Span) -> None:
        if self._pages is not None:
            holes = missing_pages(self._pages.pages, run.start, run.end, self._target.page_size)
            for page in gaps(holes, run.start, run.end):
                self.freed.add(page.start, page.end)

    def close(self) -> None:
        """Close everything."""
        if self._pages is not None:
            self._pages.close()
