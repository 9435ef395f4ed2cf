"""The changes that ``prepare`` makes to a file, its creation and its size, and their undo.

Others may use the same file at any time, so a file is extended only with calls that cannot shorten it, and the
extension undone only if nobody else has written data there.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from ktaskfs.host import syscalls
from ktaskfs.host.holders import is_held
from ktaskfs.host.mapped_range import MappedRange
from ktaskfs.host.mapping import HoleGuard, Mapping
from ktaskfs.host.presence import data_extents, missing_pages, reads_as_zeros
from ktaskfs.host.target import MEMORY, SEAL_SHRINK, AbsentTarget, FilesystemType
from ktaskfs.memory.group_room import GroupRoom
from ktaskfs.memory.room import require_file_size, require_group_pages, too_few_pages
from ktaskfs.memory.run_log import RunLog
from ktaskfs.memory.set_aside import give_back
from ktaskfs.memory.target_errors import page_unavailable
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ktaskfs.errors import KtaskfsError
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.target import Target

OWN_MAX: Final = 256 << 10
"""The maximum that a disk filesystem allocates for one byte: a block or a cluster, and its index."""


class Growth:
    """One task's changes to its ``target``, from its open on. Every method but ``keep`` raises OSError."""

    def __init__(self, kernel: Kernel, target: Target) -> None:
        self._kernel = kernel
        self.target = target
        """The file."""
        self.room = GroupRoom(kernel, target)
        """The chunks enter it before they allocate pages."""
        self.old_size = target.size()
        """Bytes the file had when it was opened; 0 for a new one."""
        self._made = self.old_size  # upper bound of the file's size, unless somebody else has extended it
        self._before = target.allocated()  # bytes when ``extend`` began
        self._grown = 0  # bytes that ``extend`` added
        self._last = Span(self.old_size, self.old_size)  # the block with these bytes
        self._kept = False
        self._set_aside: list[Span] = []

    def reserve(self, extent: Span) -> Mapping:
        """Map whole pages of hugetlbfs: this reserves the missing pages of the extent, and extends the file to its end.

        Raises OutOfHugePages or OutOfSpace too, and EFBIG past the caller's RLIMIT_FSIZE.
        """
        require_file_size(self.target, extent.end)
        require_group_pages(self._kernel, self.target, extent.size // self.target.page_size)
        self._made = max(self._made, extent.end)
        try:
            mapping = Mapping(self.target.fd, extent.start, extent.size, reserve=True, extend=True)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            raise too_few_pages(self._kernel, self.target, extent.size // self.target.page_size) from error
        self._set_aside.append(extent)
        return mapping

    def extend(self, end: int, *, free_from: int | None = None) -> Span:
        """Make the file at least ``end`` bytes long, whole pages of hugetlbfs; EFBIG past RLIMIT_FSIZE.

        On other filesystems this allocates the block before ``end`` (a huge page of tmpfs). Freeing that block can
        destroy data that somebody else writes there, so it is freed only in a range that the caller will overwrite,
        from ``free_from`` to ``end``. Otherwise it stays, in tmpfs as if zeros had been written, and its extent is
        returned, else an empty extent. Raises TargetError if tmpfs cannot keep it, for example after a truncation.
        """
        target = self.target
        nothing = Span(end, end)
        require_file_size(target, end)
        size = target.size()
        if size >= end:
            return nothing
        if size <= self._made:  # otherwise somebody else has extended it further
            self._made = max(self._made, end)
        if target.filesystem is FilesystemType.HUGETLBFS:
            Mapping(target.fd, end - target.page_size, target.page_size, reserve=False, extend=True).close()
            return nothing
        self._before = target.allocated()
        self._last = Span(end - 1, end).widened(self.block())
        try:
            return self._allocate_last(end, free_from)
        finally:
            most = self.block() if target.filesystem is FilesystemType.TMPFS else OWN_MAX
            self._grown = min(max(target.allocated() - self._before, 0), most)

    def _allocate_last(self, end: int, free_from: int | None) -> Span:
        """ftruncate(2) could shorten a file that somebody else extends at the same time; these calls cannot."""
        target = self.target
        try:
            syscalls.fallocate(target.fd, 0, end - 1, 1)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            # Only for ``copy``, which writes this byte anyway. If somebody else has extended the file in between and
            # written this byte, it becomes zero, even if the copy never begins.
            os.pwrite(target.fd, b"\0", end - 1)
            return Span(end, end)
        grown = target.allocated() - self._before
        if grown <= 0:
            return Span(end, end)
        one = grown <= self.block() and grown & (grown - 1) == 0  # or others allocate, too
        last = Span(end - 1, end).widened(grown if one else target.page_size)
        overwritten = free_from is not None and max(free_from, self.old_size) <= last.start
        if overwritten and target.size() == end:
            self._free(last)
            return Span(end, end)
        if target.filesystem is FilesystemType.TMPFS:
            self._write((end - 1) // target.page_size * target.page_size, end)
        return last

    def _write(self, start: int, end: int) -> None:
        """An unwritten page looks like somebody else's preallocation, so ``undo=1`` would be refused."""
        try:
            with Mapping(self.target.fd, start, self.target.page_size, reserve=False) as mapping:
                mapping.populate_write(0, mapping.length)
        except OSError as error:
            raise self.page_unavailable(error, end) from error

    def _free(self, last: Span) -> None:
        """Free the block allocated in advance, unless it now has data.

        Data written between the check and the call is lost: in the range that will be overwritten, or, in the same
        block, past the old end of a file that somebody else extends at the same time.
        """
        if any(data_extents(self.target.fd, last.start, last.end)):
            return
        try:
            syscalls.punch_hole(self.target.fd, last.start, last.end)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # a filesystem without holes keeps the block
                raise

    def page_unavailable(self, error: OSError, end: int) -> KtaskfsError:
        """The error for a page before ``end`` that could not be allocated."""
        return page_unavailable(self._kernel, self.target, error, end)

    def changes(self, size: int) -> dict[str, object]:
        """The lines of a plan for extending the file to at least ``size`` bytes."""
        new: dict[str, object] = {"creates": self.target.path} if isinstance(self.target, AbsentTarget) else {}
        return new | ({"extends_to": size} if size > self.old_size else {})

    def keep(self) -> None:
        """The task has done work: from now on ``take_back`` keeps the file."""
        self._kept = True

    def take_back(self) -> None:
        """Remove a new file, or restore the size of an old one and release its reservation.

        Not if others use it (``_is_ours``, ``give_back``) or have the new file open, or after ``keep``.
        """
        target = self.target
        if self._kept:
            return
        if target.created:
            if self._is_ours() and not is_held(target.fd):  # another task may be about to fill it
                with contextlib.suppress(FileNotFoundError):  # somebody else has just removed it
                    os.unlink(target.name, dir_fd=target.directory)
                return
        elif target.size() > self.old_size and self._is_ours():
            os.ftruncate(target.fd, self.old_size)
        self.give_back(self._set_aside)

    def give_back(self, ranges: Iterable[Span], freed: RunLog | None = None) -> int:
        """Release the reservation of unfinished ranges; returns the bytes that stay reserved for the file.

        ``freed``: pages that undo has freed, which are not reserved any more.
        """
        if not self._set_aside:
            return 0
        whole = _merged(each.widened(self.target.page_size) for each in ranges)
        within = Span(0, self.target.size())
        parts = [part.cut(each).cut(within) for each in whole for part in self._set_aside]
        ranges = [each for each in parts if each.size > 0]
        if not ranges:
            return 0
        try:
            return give_back(self.target, ranges, freed or RunLog())
        except OSError:  # without userfaultfd(2) the existing pages are unknown
            return sum(each.size for each in ranges)

    def _is_ours(self) -> bool:
        """Whether the name still means this file, nobody extended it, and it has no data past its old end."""
        target = self.target
        try:
            named = os.stat(target.name or target.path, dir_fd=target.directory, follow_symlinks=not target.created)
        except OSError:  # whatever the reason, the name no longer means this file
            return False
        return (
            os.path.samestat(named, os.fstat(target.fd))
            and target.size() <= self._made
            and not target.seals() & SEAL_SHRINK
            and self.is_empty()
        )

    def is_empty(self) -> bool:
        """Whether nobody has written past the old end; allocations by ``extend`` do not count.

        The rest of the page at the old end (or huge page of tmpfs), and the last block, must be zeros.
        hugetlbfs and tmpfs report pages past the end of a file only in the total, and tmpfs does not show unwritten
        ones: if the pages before the old end equal the file's total, there are no others.
        """
        target, block = self.target, self.block()
        if target.filesystem in MEMORY and target.allocated() == 0:
            return True
        edge = min(-(-self.old_size // block) * block, self._made)
        if not reads_as_zeros(target.fd, self.old_size, edge):
            return False
        if target.filesystem is FilesystemType.HUGETLBFS:
            return target.allocated() <= self._pages_before(edge)
        last = max(self._last.start, edge)
        if not reads_as_zeros(target.fd, last, self._made):
            return False
        between = next(data_extents(target.fd, edge, last), None)
        if target.filesystem is FilesystemType.OTHER:
            return self._is_as_left(between, Span(edge, last))
        data = sum(hole - data for data, hole in data_extents(target.fd, 0, edge))
        own = self._grown if edge < self._made else -edge % block
        return between is None and target.allocated() <= data + own

    def _is_as_left(self, data: Span | None, between: Span) -> bool:
        """Whether a file that is not memory has no more blocks than after ``extend``. If unsure, return False.

        SEEK_DATA reports somebody else's preallocated blocks as holes, so the total of blocks is compared.
        ``data`` is the first data ``between`` the old end and the last block. A filesystem without SEEK_DATA
        reports all of it as data, which is wrong if fewer bytes were allocated. Delayed allocation may add
        blocks to the sum later, even for older writes; then the file stays as it is.
        """
        unknown = data == between and self._grown < between.size
        return (data is None or unknown) and self.target.allocated() <= self._before + self._grown

    def _pages_before(self, edge: int) -> int:
        """Bytes of the hugetlbfs pages up to ``edge``; none without userfaultfd(2)."""
        page = self.target.page_size
        with contextlib.ExitStack() as stack:
            if edge == 0:
                return 0
            try:
                guard = HoleGuard()
                stack.callback(guard.close)
                pages = MappedRange(self.target.fd, 0, edge, page, guard)
            except OSError:
                return 0
            stack.callback(pages.close)
            return edge - sum(end - start for start, end in missing_pages(pages, 0, edge, page))

    def block(self) -> int:
        """The most bytes that the filesystem allocates for one page: on some mounts of tmpfs a huge page."""
        return max(self.target.page_size, os.fstat(self.target.fd).st_blksize)


def _merged(spans: Iterable[Span]) -> list[Span]:
    """Sort the spans, and merge touching ones."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start <= merged[-1].end:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return merged
