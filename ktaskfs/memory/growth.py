"""The changes that ``prepare`` makes to a file, its creation and its size, and how they are taken back.

Others may use the same file at any time, so it is extended in ways that cannot shorten it, and taken back only if
nobody else has put data there.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from ktaskfs.host import syscalls
from ktaskfs.host.mapped_range import MappedRange
from ktaskfs.host.mapping import HoleGuard, Mapping
from ktaskfs.host.presence import data_extents, missing_pages, reads_as_zeros
from ktaskfs.host.target import MEMORY, SEAL_SHRINK, AbsentTarget, FilesystemType
from ktaskfs.memory.group_room import GroupRoom
from ktaskfs.memory.room import require_file_size, require_group_pages, too_few_pages
from ktaskfs.memory.set_aside import give_back
from ktaskfs.memory.target_errors import page_unavailable
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ktaskfs.errors import KtaskfsError
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.target import Target

OWN_MAX: Final = 256 << 10
"""The most bytes that a filesystem of a disk allocates for one byte: a block or a cluster, and its index."""


class Growth:
    """One task's changes to its ``target``, from the moment it was opened. Every method but ``keep`` raises OSError."""

    def __init__(self, kernel: Kernel, target: Target) -> None:
        self._kernel = kernel
        self.target = target
        """The file."""
        self.room = GroupRoom(kernel, target)
        """Where chunks say what they allocate."""
        self.old_size = target.size()
        """Bytes the file had when it was opened; 0 for a new one."""
        self._made = self.old_size  # the file is not longer than this, unless somebody else has extended it
        self._before = target.allocated()  # bytes when ``extend`` began
        self._grown = 0  # and by how many ``extend`` left more
        self._last = Span(self.old_size, self.old_size)  # the block in which ``extend`` may have left them
        self._kept = False
        self._set_aside: list[Span] = []

    def reserve(self, extent: Span) -> Mapping:
        """Map whole pages of hugetlbfs: what the extent lacks is set aside, and the file then ends no earlier.

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

        Elsewhere the block before ``end`` (a huge page of tmpfs) is allocated for that. Freeing it again can destroy
        what somebody else writes there, so that is done only in a range that the caller is about to overwrite, from
        ``free_from`` to ``end``. Otherwise it stays, in tmpfs as if zeros had been written, and its place is returned,
        or else an empty extent. Raises TargetError if tmpfs cannot keep it, as when the file is truncated meanwhile.
        """
        target = self.target
        nothing = Span(end, end)
        require_file_size(target, end)
        size = target.size()
        if size >= end:
            return nothing
        if size <= self._made:  # otherwise somebody else has extended it beyond what we made
            self._made = max(self._made, end)
        if target.filesystem is FilesystemType.HUGETLBFS:
            Mapping(target.fd, end - target.page_size, target.page_size, reserve=False, extend=True).close()
            return nothing
        self._before = target.allocated()
        self._last = Span(end - 1, end).widened(self._block())
        try:
            return self._allocate_last(end, free_from)
        finally:
            most = self._block() if target.filesystem is FilesystemType.TMPFS else OWN_MAX
            self._grown = min(max(target.allocated() - self._before, 0), most)

    def _allocate_last(self, end: int, free_from: int | None) -> Span:
        """ftruncate(2) would shorten a file that somebody else extends at this very moment; these calls do not."""
        target = self.target
        try:
            syscalls.fallocate(target.fd, 0, end - 1, 1)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            # Only for ``copy``, which writes this byte anyway. If somebody else has extended the file since its size
            # was looked at, and has written just this byte, it is zero from now on: even if the copy never begins.
            os.pwrite(target.fd, b"\0", end - 1)
            return Span(end, end)
        grown = target.allocated() - self._before
        if grown <= 0:
            return Span(end, end)
        one = grown <= self._block() and grown & (grown - 1) == 0  # or else others allocate too
        last = Span(end - 1, end).widened(grown if one else target.page_size)
        overwritten = free_from is not None and max(free_from, self.old_size) <= last.start
        if overwritten and target.size() == end:
            self._free(last)
            return Span(end, end)
        if target.filesystem is FilesystemType.TMPFS:
            self._write((end - 1) // target.page_size * target.page_size, end)
        return last

    def _write(self, start: int, end: int) -> None:
        """A page that was never written would look preallocated by somebody else, and ``undo=1`` would be refused."""
        try:
            with Mapping(self.target.fd, start, self.target.page_size, reserve=False) as mapping:
                mapping.populate_write(0, mapping.length)
        except OSError as error:
            raise self.page_unavailable(error, end) from error

    def _free(self, last: Span) -> None:
        """Free what was allocated in advance, unless it holds data by now.

        Data written between the check and the call is lost. It lies in the range that is to be overwritten or, in
        the same block, past the end that the file had just before, if somebody else extends it at this very moment.
        """
        if any(data_extents(self.target.fd, last.start, last.end)):
            return
        try:
            syscalls.punch_hole(self.target.fd, last.start, last.end)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # a filesystem without holes keeps the block
                raise

    def page_unavailable(self, error: OSError, end: int) -> KtaskfsError:
        """What it means that a page before ``end`` could not be had."""
        return page_unavailable(self._kernel, self.target, error, end)

    def changes(self, size: int) -> dict[str, object]:
        """What making the file at least ``size`` bytes long means, as lines of a plan."""
        new: dict[str, object] = {"creates": self.target.path} if isinstance(self.target, AbsentTarget) else {}
        return new | ({"extends_to": size} if size > self.old_size else {})

    def keep(self) -> None:
        """The task has done something: from now on ``take_back`` leaves the file as it is."""
        self._kept = True

    def take_back(self) -> None:
        """Remove a new file, give an old one its old size and what was set aside back.

        Not if others use it (``_is_ours``, ``give_back``), or after ``keep``.
        """
        target = self.target
        if self._kept:
            return
        if target.created:
            if self._is_ours():
                os.unlink(target.name, dir_fd=target.directory)
                return
        elif target.size() > self.old_size and self._is_ours():
            os.ftruncate(target.fd, self.old_size)
        self.give_back(self._set_aside)

    def give_back(self, ranges: Iterable[Span]) -> int:
        """Give back what was set aside in ranges that are not done; returns bytes that stay set aside for the file."""
        if not self._set_aside:
            return 0
        whole = _merged(each.widened(self.target.page_size) for each in ranges)
        within = Span(0, self.target.size())
        parts = [part.cut(each).cut(within) for each in whole for part in self._set_aside]
        ranges = [each for each in parts if each.size > 0]
        if not ranges:
            return 0
        try:
            return give_back(self.target, ranges)
        except OSError:  # where userfaultfd(2) is not to be had, nobody knows which pages are there
            return sum(each.size for each in ranges)

    def _is_ours(self) -> bool:
        """Whether the name still means this file, nobody made it longer, and nothing lies past its old end."""
        target = self.target
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
        """Whether nobody has put anything past the old end; what ``extend`` allocated there itself does not count.

        The rest of the page at the old end (or huge page of tmpfs), and the last block, must be zeros.
        Neither hugetlbfs nor tmpfs tells of pages past the end of a file but in the sum of all, and tmpfs not of those
        that were never written: only if the pages before the old end are as many as the file has, there are no others.
        """
        target, block = self.target, self._block()
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

        Blocks that somebody else has preallocated are holes for SEEK_DATA, so the sum of all blocks is compared.
        ``data`` is the first data in the part ``between`` the old end and the last block. A filesystem without
        SEEK_DATA calls all of it data, which means nothing if fewer bytes were allocated. Delayed allocation may add
        blocks to the sum later, even for older writes; then the file is left as it is.
        """
        unknown = data == between and self._grown < between.size
        return (data is None or unknown) and self.target.allocated() <= self._before + self._grown

    def _pages_before(self, edge: int) -> int:
        """Bytes of the pages of hugetlbfs up to ``edge``; none where userfaultfd(2) is not to be had."""
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

    def _block(self) -> int:
        """The most bytes that the filesystem allocates for one page."""
        return max(self.target.page_size, os.fstat(self.target.fd).st_blksize)


def _merged(spans: Iterable[Span]) -> list[Span]:
    """The same units in order, with no two spans that touch."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start <= merged[-1].end:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return merged
