"""A file that an operation reads: any regular file, without its visible holes."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import InvalidValue, NotSupported, TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.files import hides_data
from ktaskfs.host.mapped_range import MappedRange
from ktaskfs.host.mapping import HoleGuard
from ktaskfs.host.presence import data_extents, gaps, missing_pages
from ktaskfs.host.target import MEMORY, FilesystemType, open_target
from ktaskfs.memory.target_errors import file_ended, truncated
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.mapping import Mapping

DIRECT_BLOCK: Final = 4096
"""Alignment of O_DIRECT reads: enough for all current devices (STATX_DIOALIGN of statx(2) has the exact one)."""


class Source:
    """An open file and a way to find its holes; reading allocates no page.

    If a filter forbids userfaultfd(2), holes of hugetlbfs are invisible, and read as zeros.
    """

    def __init__(self, kernel: Kernel, path: str, *, direct: bool = False, handle: int | None = None) -> None:
        """Open ``path``, or the file of ``handle`` (see ``open_target``); ``direct``: bypass the cache.

        Raises as ``open_target``, and NotSupported for a file that O_DIRECT cannot read, or that has data but size 0,
        like many virtual files.
        """
        self.file = open_target(kernel, path, kinds=frozenset(FilesystemType), write=False, handle=handle)
        self._resources = contextlib.ExitStack()
        self._resources.callback(self.file.close)
        self._direct: int | None = None
        self._pages: MappedRange | None = None
        self._sparse = False
        try:
            self._require_true_size()
            if direct:
                self._direct = self._open_direct(kernel)
            if self.file.filesystem is FilesystemType.HUGETLBFS and 0 < self.file.allocated() < self.file.size():
                self.map()
                self._sparse = self._pages is not None
        except BaseException:
            self.close()
            raise

    def _require_true_size(self) -> None:
        try:
            if hides_data(self.file.fd):
                raise NotSupported(f"{self.file.path} has data but reports size 0: use cat(1)")
        except OSError as error:
            raise TargetError.from_os(error, f"read {self.file.path}") from error

    def _open_direct(self, kernel: Kernel) -> int:
        try:
            fd = kernel.reopen(self.file.fd, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise NotSupported(f"direct=1: {self.file.path} cannot be read with O_DIRECT") from error
            raise TargetError.from_os(error, f"open {self.file.path} with O_DIRECT") from error
        self._resources.callback(os.close, fd)
        return fd

    def map(self) -> None:
        """Map the file for ``mapped``, unless it can only be read.

        Not thread-safe. An unguarded mapping of hugetlbfs would fill its holes. tmpfs is never mapped: reading its
        unwritten pages turns them into data.
        """
        if self._pages is not None or self._direct is not None or self.file.filesystem is FilesystemType.TMPFS:
            return
        end = Span(0, self.file.size()).widened(self.file.page_size).end
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            guard = None
            if self.file.filesystem is FilesystemType.HUGETLBFS:
                guard = HoleGuard()
                stack.callback(guard.close)
            pages = MappedRange(self.file.fd, 0, end, self.file.page_size, guard, private=True)
            stack.callback(pages.close)
            self._resources.push(stack.pop_all())
            self._pages = pages

    def data(self, start: int, end: int) -> Iterator[Span]:
        """The runs from ``start`` to ``end`` that may contain non-zero bytes, in order.

        Raises TargetError; ENXIO if the file is shorter than ``end`` after the last run.
        """
        try:
            if self._sparse and self._pages is not None:
                yield from gaps(missing_pages(self._pages, *self._whole_pages(start, end)), start, end)
            elif self.file.filesystem in MEMORY and self.file.allocated() == 0:
                pass  # other filesystems may store a few bytes without a block
            elif self.file.filesystem is FilesystemType.HUGETLBFS or self._is_full():
                yield Span(start, end)
            else:
                yield from data_extents(self.file.fd, start, end)
        except OSError as error:
            raise TargetError.from_os(error, f"find holes of {self.file.path}") from error
        if self.file.size() < end:
            raise truncated(self.file)

    def _is_full(self) -> bool:
        """Whether tmpfs has a page for every byte; finding a hole examines each page, 10 ms per GiB."""
        if self.file.filesystem is not FilesystemType.TMPFS:
            return False
        status = os.fstat(self.file.fd)
        return status.st_blocks * 512 >= -(-status.st_size // status.st_blksize) * status.st_blksize

    def _whole_pages(self, start: int, end: int) -> tuple[int, int, int]:
        page = self.file.page_size
        whole = Span(start, end).widened(page)
        return whole.start, whole.end, page

    def read(self, view: memoryview, position: int) -> None:
        """Fill ``view`` from ``position`` on; raises TargetError, ENXIO for a file that is now too short."""
        done = 0
        while done < len(view):
            fd, length = self._reader(position + done, len(view) - done)
            try:
                count = os.preadv(fd, [view[done : done + length]], position + done)
            except OSError as error:
                raise TargetError.from_os(error, f"read {self.file.path}") from error
            if count == 0:
                raise file_ended(self.file, position + done)
            done += count

    def send(self, target: int, position: int, length: int) -> int:
        """sendfile(2) to the offset of the descriptor ``target``; returns how much was sent. Raises OSError.

        0 at the end of the file, and with ``direct``: sendfile(2) reads through the cache.
        """
        return 0 if self._direct is not None else os.sendfile(target, self.file.fd, position, length)

    def read_into(self, mapping: Mapping, at: int, position: int, length: int) -> None:
        """Like ``read``, into a mapping at offset ``at``.

        Also raises OSError, only with EFAULT: the mapping can get no page.
        """
        done = 0
        while done < length:
            fd, size = self._reader(position + done, length - done)
            try:
                count = mapping.readv_into(fd, position + done, at + done, size)
            except OSError as error:
                if error.errno == errno.EFAULT:
                    raise
                raise TargetError.from_os(error, f"read {self.file.path}") from error
            if count == 0:
                raise file_ended(self.file, position + done)
            done += count

    @contextlib.contextmanager
    def mapped(self, start: int, end: int) -> Iterator[MappedSource | None]:
        """A range as memory that the kernel can copy from; None if it must be read."""
        with contextlib.ExitStack() as stack:
            mapping = None
            if self._pages is not None:
                with contextlib.suppress(OSError):
                    mapping = stack.enter_context(self._pages.window(start, end))
            cached = self.file.filesystem is FilesystemType.OTHER
            yield None if mapping is None else MappedSource(mapping, cached=cached)

    def _reader(self, position: int, length: int) -> tuple[int, int]:
        """The descriptor and length of a read: the last partial block and the rest are read through the cache."""
        if self._direct is None or position % DIRECT_BLOCK or length < DIRECT_BLOCK:
            return self.file.fd, length
        return self._direct, length - length % DIRECT_BLOCK

    def close(self) -> None:
        """Close everything."""
        self._resources.close()


class MappedSource:
    """A mapped range of a source; Python code never reads it. ``cached``: from the page cache."""

    def __init__(self, mapping: Mapping, *, cached: bool) -> None:
        self._mapping = mapping
        self._cached = cached

    @contextlib.contextmanager
    def window(self, start: int, end: int) -> Iterator[int]:
        """The address of the byte at ``start``, with the pages up to ``end`` in memory.

        Raises OSError for a page that is missing, unreadable, or past the end of the file.
        """
        whole = Span(start, end).widened(syscalls.page_size())
        at = whole.start - self._mapping.offset
        try:
            if self._cached:  # page faults read ahead less than pread(2): a cold file took up to twice as long
                self._mapping.read_ahead(at, whole.size)
            self._mapping.populate_read(at, whole.size)
            yield self._mapping.address + start - self._mapping.offset
        finally:
            if self._cached:  # huge pages do not count as a process's own memory
                self._mapping.let_go(at, whole.size)


def require_source_range(source: Source, extent: Span) -> None:
    """Raises InvalidValue unless the source has the bytes."""
    size = source.file.size()
    if extent.end > size:
        raise InvalidValue(f"the range ends at {extent.end}, past the end of {source.file.path} ({size} bytes)")
