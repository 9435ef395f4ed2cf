"""What ``prepare`` changes about a file, its size and that it is there at all, and how that is taken back.

Others may use the same file at any time, so it is extended in ways that cannot shorten it, and what was made is
taken back only where nobody has put anything.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from ktaskfs.host import syscalls
from ktaskfs.host.mapping import HoleGuard, Mapping
from ktaskfs.host.presence import GuardedRange, data_extents, missing_pages
from ktaskfs.host.target import MEMORY, SEAL_SHRINK, Kind
from ktaskfs.operations.extent import Extent
from ktaskfs.operations.room import require_file_size, too_few_pages

if TYPE_CHECKING:
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.target import Target


class Growth:
    """One task's changes to its ``target``, from the moment it was opened. Every method raises OSError."""

    def __init__(self, kernel: Kernel, target: Target) -> None:
        self._kernel = kernel
        self._target = target
        self.old_size = target.size()
        """Bytes the file had when it was opened; 0 for a new one."""
        self._made = self.old_size  # the file is not longer than this, unless somebody else has extended it

    def reserve(self, extent: Extent) -> Mapping:
        """Map whole pages of hugetlbfs: what the extent lacks is set aside, and the file then ends no earlier.

        Raises OutOfHugePages or OutOfSpace too, and EFBIG past the caller's RLIMIT_FSIZE.
        """
        require_file_size(self._target, extent.end)
        self._made = max(self._made, extent.end)
        try:
            return Mapping(self._target.fd, extent.start, extent.size, reserve=True, extend=True)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            raise too_few_pages(self._kernel, self._target, extent) from error

    def extend(self, end: int) -> None:
        """Make the file at least ``end`` bytes long, whole pages of hugetlbfs; EFBIG past RLIMIT_FSIZE.

        Only the byte before ``end`` may be touched, and only on a filesystem that allocates nothing in advance.
        """
        target = self._target
        require_file_size(target, end)
        if target.size() >= end:
            return
        self._made = max(self._made, end)
        if target.kind is Kind.HUGETLBFS:
            Mapping(target.fd, end - target.page_size, target.page_size, reserve=False, extend=True).close()
            return
        try:
            self._allocate_last(end)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            os.pwrite(target.fd, b"\0", end - 1)

    def _allocate_last(self, end: int) -> None:
        """ftruncate(2) would shorten a file that somebody else extends in this very moment; fallocate(2) does not.

        What it allocates is freed again, unless data has come there meanwhile: one page, or one huge page of tmpfs.
        """
        target = self._target
        before = target.allocated()
        syscalls.fallocate(target.fd, 0, end - 1, 1)
        grown = target.allocated() - before
        if grown <= 0:
            return
        one = grown <= self._block() and grown & (grown - 1) == 0  # or else others allocate too
        last = Extent(end - 1, end).widened(grown if one else target.page_size)
        if not any(data_extents(target.fd, last.start, last.end)):
            syscalls.punch_hole(target.fd, last.start, last.end)

    def take_back(self) -> None:
        """Remove a new file, give another its old size; not if others use it: see ``_is_ours``."""
        target = self._target
        if target.created:
            if self._is_ours():
                os.unlink(target.name, dir_fd=target.directory)
        elif target.size() > self.old_size and self._is_ours():
            os.ftruncate(target.fd, self.old_size)

    def _is_ours(self) -> bool:
        """Whether the name still means this file, nobody made it longer, and nothing lies past its old end."""
        target = self._target
        try:
            named = os.stat(target.name or target.path, dir_fd=target.directory, follow_symlinks=not target.created)
        except OSError:  # whatever the reason, it does not lead there any more
            return False
        return (
            os.path.samestat(named, os.fstat(target.fd))
            and target.size() <= self._made
            and not target.seals() & SEAL_SHRINK
            and self.is_empty()
        )

    def is_empty(self) -> bool:
        """Whether all pages lie before the old end, and the rest of the page there (or huge page of tmpfs) is zeros.

        Neither hugetlbfs nor tmpfs tells of pages past the end of a file but in the sum of all, and tmpfs not of those
        that were never written: only if the pages before the old end are as many as the file has, there are no others.
        """
        target, block = self._target, self._block()
        if target.kind in MEMORY and target.allocated() == 0:
            return True
        edge = min(-(-self.old_size // block) * block, self._made)
        if os.pread(target.fd, edge - self.old_size, self.old_size).strip(b"\0"):
            return False
        if target.kind is Kind.HUGETLBFS:
            return target.allocated() <= self._pages_before(edge)
        if any(data_extents(target.fd, edge, self._made)):
            return False
        data = sum(hole - data for data, hole in data_extents(target.fd, 0, edge))
        return target.kind is Kind.OTHER or target.allocated() <= data + -edge % block

    def _pages_before(self, edge: int) -> int:
        """Bytes of the pages of hugetlbfs up to ``edge``; none where userfaultfd(2) is not to be had."""
        page = self._target.page_size
        with contextlib.ExitStack() as stack:
            if edge == 0:
                return 0
            try:
                guard = HoleGuard()
                stack.callback(guard.close)
                pages = GuardedRange(self._target.fd, 0, edge, page, guard)
            except OSError:
                return 0
            stack.callback(pages.close)
            return edge - sum(end - start for start, end in missing_pages(pages, 0, edge, page))

    def _block(self) -> int:
        """The most bytes that the filesystem allocates for one page."""
        return max(self._target.page_size, os.fstat(self._target.fd).st_blksize)
