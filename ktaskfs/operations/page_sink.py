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
from ktaskfs.host.target import Kind
from ktaskfs.operations.extent import Extent, windows
from ktaskfs.operations.sink import BUFFER, Sink, WritingSink
from ktaskfs.operations.tmpfs import has_huge_pages, mapped_windows
from ktaskfs.operations.trouble import page_unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from ktaskfs.host.mapping import Mapping
    from ktaskfs.host.target import Target
    from ktaskfs.operations.digest import Digest
    from ktaskfs.operations.source import MappedSource, Source

WINDOW: Final = 4 << 20
"""Bytes of the source that a thread has mapped at a time: they count as the worker's resident memory. Each call costs
some microseconds, also on the other processors, which drop what they know of a mapping."""


class Placer:
    """Copies from a mapped source right into pages that are missing, by userfaultfd(2), UFFDIO_COPY.

    The kernel copies once, and clears nothing before it. For tmpfs alone: into huge pages it would save a quarter of
    the time, but whoever truncates a file of hugetlbfs meanwhile has the kernel lose count of what it has reserved
    (hugetlb_mfill_atomic_pte in mm/hugetlb.c; seen on Linux 6.18), for everybody, and a file can always be truncated.
    """

    def __init__(self, source: Source, target: Target, extent: Extent, shift: int) -> None:
        """``extent``: whole pages of the target; ``shift`` as for a Sink. Raises OSError where a filter forbids it."""
        self._source = source
        self._target = target
        self._shift = shift
        self._guard = HoleGuard()
        source.map()
        try:
            self._pages = MappedRange(target.fd, extent.start, extent.end, target.page_size, self._guard)
        except BaseException:
            self._guard.close()
            raise

    def window(self, start: int, end: int) -> AbstractContextManager[Mapping]:
        """A mapping of the target for ``place`` and ``put``. Raises OSError."""
        return self._pages.window(start, end)

    def place(self, mapping: Mapping, extent: Extent, rest: Callable[[Extent], None]) -> None:
        """Copy a range of the target; ``rest`` copies what cannot be put in.

        That is all from the first page on that is there already, or cannot be had, or that the source lacks: other
        ways to copy say what is wrong. Raises what ``rest`` raises.
        """
        page = self._target.page_size
        first = min(-(-extent.start // page) * page, extent.end)
        last = max(extent.end // page * page, first)
        if extent.start < first:
            rest(Extent(extent.start, first))
        if first < last:
            with self._source.mapped(first + self._shift, last + self._shift) as origin:
                self._place_windows(mapping, Extent(first, last), origin, rest)
        if last < extent.end:
            rest(Extent(last, extent.end))

    def _place_windows(
        self, mapping: Mapping, extent: Extent, origin: MappedSource | None, rest: Callable[[Extent], None]
    ) -> None:
        for window in windows(extent.start, extent.end, WINDOW):
            done = window.start if origin is None else self._put_from(origin, mapping, window)
            if done < window.end:
                origin = None
                rest(Extent(done, window.end))
            mapping.let_go(window.start - mapping.offset, window.size)

    def _put_from(self, origin: MappedSource, mapping: Mapping, window: Extent) -> int:
        """Returns up to where the window was put in."""
        try:
            with origin.window(window.start + self._shift, window.end + self._shift) as address:
                return window.start + self.put(mapping, window, address)
        except OSError:
            return window.start

    def put(self, mapping: Mapping, extent: Extent, address: int) -> int:
        """Put whole pages in from ``address``; returns how many bytes went in from the beginning."""
        page = self._target.page_size
        size = extent.size - extent.size % page
        if not size or extent.start % page:
            return 0
        return syscalls.userfaultfd_copy(self._guard.fd, mapping.address + extent.start - mapping.offset, address, size)

    def close(self) -> None:
        """Unmap and close."""
        self._pages.close()
        self._guard.close()


class PageSink(WritingSink):
    """For tmpfs of ordinary pages: whole pages that are missing are put in.

    pwrite(2) holds the lock of the inode while it copies, so two threads are no faster with it; populating a mapping
    needs no lock but clears each page first, and costs twice as much. What the kernel does not put in is written after
    all.
    """

    def __init__(self, source: Source, target: Target, end: int, shift: int, placer: Placer) -> None:
        super().__init__(source, target, end, shift)
        self._placer = placer

    def copy(self, start: int, end: int, digest: Digest | None) -> None:
        with contextlib.ExitStack() as stack:
            try:
                mapping = stack.enter_context(self._placer.window(start, end))
            except OSError as error:
                raise TargetError.from_os(error, f"map {self._target.path}") from error
            if digest is None:
                self._placer.place(
                    mapping, Extent(start, end), lambda extent: self._copy_through_buffer(mapping, extent, None)
                )
                return
            for window, _ in mapped_windows(mapping, start, end):
                self._copy_through_buffer(mapping, window, digest)

    def _copy_through_buffer(self, mapping: Mapping, extent: Extent, digest: Digest | None) -> None:
        for piece in windows(extent.start, extent.end, BUFFER):
            view = self._buffer.view[: piece.size]
            self._source.read(view, piece.start + self._shift)
            if digest is not None:
                digest.add(piece.start, view)
            placed = self._placer.put(mapping, piece, self._buffer.address)
            if placed < piece.size:
                self.write(view[placed:], piece.start + placed)

    def close(self) -> None:
        self._placer.close()


class MappingSink(Sink):
    """For huge pages: the kernel reads from the source right into a mapping of the target.

    A digest is made of what is then in the target, read back while it is still in a processor's cache.
    """

    def __init__(self, source: Source, target: Target, end: int, shift: int, pages: MappedRange) -> None:
        super().__init__(source, target, end, shift)
        self._pages = pages

    def copy(self, start: int, end: int, digest: Digest | None) -> None:
        extent = Extent(start, end)
        try:
            with self._pages.window(start, end) as mapping:
                if self._target.kind is Kind.TMPFS:
                    self._populate(mapping, extent, digest)
                else:
                    self._read_into(mapping, extent, digest)
        except OSError as error:
            raise page_unavailable(self._target, error, end) from error

    def _populate(self, mapping: Mapping, extent: Extent, digest: Digest | None) -> None:
        for window, pages in mapped_windows(mapping, extent.start, extent.end):
            mapping.populate_write(pages.start - mapping.offset, pages.size)
            self._read_into(mapping, window, digest)

    def _read_into(self, mapping: Mapping, extent: Extent, digest: Digest | None) -> None:
        for piece in windows(extent.start, extent.end, WINDOW if digest is None else BUFFER):
            self._source.read_into(mapping, piece.start - mapping.offset, piece.start + self._shift, piece.size)
            if digest is not None:
                view = self._buffer.view[: piece.size]
                if os.preadv(self._target.fd, [view], piece.start) != piece.size:
                    raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))  # truncated just now, as the copy would say
                digest.add(piece.start, view)

    def close(self) -> None:
        self._pages.close()


def open_sink(source: Source, target: Target, extent: Extent, shift: int) -> Sink:
    """The sink for a target that has its size; raises TargetError if it cannot be mapped."""
    if target.kind is Kind.OTHER:
        return WritingSink(source, target, extent.end, shift)
    whole = extent.widened(target.page_size)
    if target.kind is Kind.TMPFS and not has_huge_pages(target):
        with contextlib.suppress(OSError):  # a filter forbids it
            return PageSink(source, target, extent.end, shift, Placer(source, target, whole, shift))
        return WritingSink(source, target, extent.end, shift)
    try:
        pages = MappedRange(target.fd, whole.start, whole.end, target.page_size, None)
    except OSError as error:
        raise TargetError.from_os(error, f"map {target.path}") from error
    return MappingSink(source, target, extent.end, shift, pages)
