"""Sinks for files of memory: whole pages are put in, or populated and read into, through a mapping."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.mapped_range import MappedRange
from ktaskfs.host.mapping import HoleGuard
from ktaskfs.host.target import Filesystem
from ktaskfs.memory.room import require_file_size
from ktaskfs.memory.sink import BUFFER, Sink, WritingSink
from ktaskfs.memory.tmpfs import WINDOW, has_huge_pages, mapped_windows
from ktaskfs.memory.trouble import page_unavailable
from ktaskfs.span import Span

if TYPE_CHECKING:
    from ktaskfs.host.mapping import Mapping
    from ktaskfs.host.target import Target
    from ktaskfs.memory.digest import Digest
    from ktaskfs.memory.source import MappedSource, Source


FEW: Final = 64 << 10
"""Bytes between two holes that are sooner written than put in through mappings: a third of the time at 4 KiB."""


class PageSink(WritingSink):
    """For tmpfs of ordinary pages: whole pages that are missing are put in by userfaultfd(2), UFFDIO_COPY.

    The kernel copies once, right from the pages of a mapped source, and clears nothing before it. pwrite(2) holds the
    lock of the inode while it copies, so two threads are no faster with it; populating a mapping needs no lock but
    clears each page first, and costs twice as much. What the kernel does not put in (a page is there already, or cannot
    be had, or the source lacks it) is read and written after all, and that says what is wrong.

    Into huge pages it would save a quarter of the time, but whoever truncates a file of hugetlbfs meanwhile has the
    kernel lose count of what it has reserved (hugetlb_mfill_atomic_pte in mm/hugetlb.c; seen on Linux 6.18), for
    everybody, and a file can always be truncated.
    """

    def __init__(self, source: Source, target: Target, extent: Span, shift: int) -> None:
        """Raises OSError where a filter forbids it."""
        super().__init__(source, target, extent.end, shift)
        whole = extent.widened(target.page_size)
        self._guard = HoleGuard()
        try:
            self._pages = MappedRange(target.fd, whole.start, whole.end, target.page_size, self._guard)
        except BaseException:
            self._guard.close()
            raise
        source.map()

    def copy(self, start: int, end: int, digest: Digest | None) -> None:
        """A digest is made of what passes through a buffer; a few pages are written: that takes fewer calls."""
        if end - start < FEW:
            super().copy(start, end, digest)
            return
        with contextlib.ExitStack() as stack:
            try:
                mapping = stack.enter_context(self._pages.window(start, end))
            except OSError as error:
                raise TargetError.from_os(error, f"map {self._target.path}") from error
            origin = None
            if digest is None:
                origin = stack.enter_context(self._source.mapped(start + self._shift, end + self._shift))
            for window, _ in mapped_windows(mapping, start, end):
                done = window.start if origin is None else self._put_from(origin, mapping, window)
                if done == window.start and done % self._target.page_size == 0:
                    origin = None  # nor will the rest of the chunk be missing
                self._copy_through_buffer(mapping, Span(done, window.end), digest)

    def _put_from(self, origin: MappedSource, mapping: Mapping, window: Span) -> int:
        """Returns up to where the window was put in."""
        try:
            with origin.window(window.start + self._shift, window.end + self._shift) as address:
                return window.start + self._put(mapping, window, address)
        except OSError:
            return window.start

    def _put(self, mapping: Mapping, extent: Span, address: int) -> int:
        """Put whole pages in from ``address``; returns how many bytes went in from the beginning."""
        page = self._target.page_size
        size = extent.size - extent.size % page
        if not size or extent.start % page:
            return 0
        return syscalls.userfaultfd_copy(self._guard.fd, mapping.address + extent.start - mapping.offset, address, size)

    def _copy_through_buffer(self, mapping: Mapping, extent: Span, digest: Digest | None) -> None:
        for piece in Span(extent.start, extent.end).windows(BUFFER):
            view = self._buffer.view[: piece.size]
            self._source.read(view, piece.start + self._shift)
            if digest is not None:
                digest.add(piece.start, view)
            placed = self._put(mapping, piece, self._buffer.address)
            if placed < piece.size:
                self._write(view[placed:], piece.start + placed)

    def close(self) -> None:
        self._pages.close()
        self._guard.close()


class MappingSink(Sink):
    """For huge pages: the kernel reads from the source right into a mapping of the target.

    A digest is made of what is then in the target, read back while it is still in a processor's cache.
    """

    def __init__(self, source: Source, target: Target, end: int, shift: int, pages: MappedRange) -> None:
        super().__init__(source, target, end, shift)
        self._pages = pages

    def copy(self, start: int, end: int, digest: Digest | None) -> None:
        extent = Span(start, end)
        try:
            with self._pages.window(start, end) as mapping:
                if self._target.filesystem is Filesystem.TMPFS:
                    self._populate(mapping, extent, digest)
                else:
                    self._read_into(mapping, extent, digest)
        except OSError as error:
            raise page_unavailable(self._target, error, self._end) from error

    def _populate(self, mapping: Mapping, extent: Span, digest: Digest | None) -> None:
        for window, pages in mapped_windows(mapping, extent.start, extent.end):
            mapping.populate_write(pages.start - mapping.offset, pages.size)
            self._read_into(mapping, window, digest)

    def _read_into(self, mapping: Mapping, extent: Span, digest: Digest | None) -> None:
        for piece in Span(extent.start, extent.end).windows(WINDOW if digest is None else BUFFER):
            self._source.read_into(mapping, piece.start - mapping.offset, piece.start + self._shift, piece.size)
            if digest is not None:
                view = self._buffer.view[: piece.size]
                if os.preadv(self._target.fd, [view], piece.start) != piece.size:
                    raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))  # truncated just now, as the copy would say
                digest.add(piece.start, view)

    def close(self) -> None:
        self._pages.close()


def open_sink(source: Source, target: Target, extent: Span, shift: int) -> Sink:
    """The sink for a target that has its size.

    Raises TargetError if it cannot be mapped, OSError (EFBIG) if it is to be written past the caller's RLIMIT_FSIZE.
    """
    if target.filesystem is Filesystem.OTHER or (target.filesystem is Filesystem.TMPFS and not has_huge_pages(target)):
        require_file_size(target, extent.end, written=True)
        if target.filesystem is Filesystem.TMPFS:
            with contextlib.suppress(OSError):  # a filter forbids it
                return PageSink(source, target, extent, shift)
        return WritingSink(source, target, extent.end, shift)
    whole = extent.widened(target.page_size)
    try:
        pages = MappedRange(target.fd, whole.start, whole.end, target.page_size, None)
    except OSError as error:
        raise TargetError.from_os(error, f"map {target.path}") from error
    return MappingSink(source, target, extent.end, shift, pages)
