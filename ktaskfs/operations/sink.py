"""A file that an operation writes, by whichever way its filesystem takes data fastest without a risk of SIGBUS."""

from __future__ import annotations

import contextlib
import errno
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.buffer import Buffer
from ktaskfs.host.mapping import HoleGuard, Mapping
from ktaskfs.host.presence import GuardedRange
from ktaskfs.host.target import Kind
from ktaskfs.operations.extent import Extent, windows
from ktaskfs.operations.trouble import page_unavailable, truncated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.host.target import Target
    from ktaskfs.operations.digest import Digest
    from ktaskfs.operations.source import Source

BUFFER: Final = 256 << 10
"""Bytes on their way in a processor's own cache: at 1 MiB a thread was slower by a tenth."""
TMPFS_WINDOW: Final = 4 << 20
"""Bytes of tmpfs mapped at a time; while they are mapped they count as the worker's resident memory."""


class Sink(ABC):
    """Copies ranges of a source to where they belong in ``target``.

    ``end`` is where all that is copied ends: a target that is shorter was truncated meanwhile. ``shift`` is what is
    added to a position in the target for that in the source. Every ``copy`` and ``clear`` raises TargetError.
    """

    def __init__(self, source: Source, target: Target, end: int, shift: int) -> None:
        self._source = source
        self._target = target
        self._end = end
        self._shift = shift
        self._buffer = Buffer(BUFFER)

    @abstractmethod
    def copy(self, start: int, end: int, digest: Digest | None) -> None:
        """Copy what belongs at ``start`` to ``end`` of the target; ``digest`` gets it by its position there."""

    def clear(self, start: int, end: int, digest: Digest | None) -> None:
        """Make a hole there, or write zeros where the filesystem makes none, as in a part of a page of hugetlbfs."""
        if self._target.kind is Kind.HUGETLBFS:
            page = self._target.page_size
            first = min(-(-start // page) * page, end)
            last = max(end // page * page, first)
            self._zero(start, first, digest)
            self._zero(last, end, digest)
            start, end = first, last
        if start == end:
            return
        try:
            syscalls.punch_hole(self._target.fd, start, end)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise TargetError.from_os(error, f"make a hole in {self._target.path}") from error
            self.copy(start, end, digest)
        else:
            if digest is not None:
                digest.add_zeros(start, end)

    def _zero(self, start: int, end: int, digest: Digest | None) -> None:
        """For a part of a huge page, which Linux before 6.0 neither frees nor clears; no page is allocated for it."""
        for piece in windows(start, end, BUFFER):
            try:
                there = os.pread(self._target.fd, piece.size, piece.start)
            except OSError as error:
                raise TargetError.from_os(error, f"read {self._target.path}") from error
            if there != bytes(piece.size):
                self.copy(piece.start, piece.end, digest)
            elif digest is not None:
                digest.add_zeros(piece.start, piece.end)

    def close(self) -> None:
        """Release what is mapped; the target stays open."""
        return


class WritingSink(Sink):
    """Reads into a buffer and writes it with pwrite(2), which must not extend a file that was truncated meanwhile."""

    def copy(self, start: int, end: int, digest: Digest | None) -> None:
        for piece in windows(start, end, BUFFER):
            view = self._buffer.view[: piece.size]
            self._source.read(view, piece.start + self._shift)
            if digest is not None:
                digest.add(piece.start, view)
            self._write(view, piece.start)

    def _write(self, view: memoryview, position: int) -> None:
        done = 0
        try:
            while done < len(view):
                if self._target.size() < self._end:
                    raise truncated(self._target)
                done += os.pwrite(self._target.fd, view[done:], position + done)
        except OSError as error:
            raise TargetError.from_os(error, f"write {self._target.path}") from error


class PageSink(WritingSink):
    """For tmpfs of ordinary pages: whole pages that are missing are put in by userfaultfd(2), UFFDIO_COPY.

    pwrite(2) holds the lock of the inode while it copies, so two threads are no faster with it; populating a mapping
    needs no lock but clears each page first, and costs twice as much. What the kernel does not put in (a page is there
    already, or there is no memory) is written after all, and that says what is wrong.
    """

    def __init__(self, source: Source, target: Target, end: int, shift: int, guard: HoleGuard) -> None:
        super().__init__(source, target, end, shift)
        self._guard = guard

    def copy(self, start: int, end: int, digest: Digest | None) -> None:
        with contextlib.ExitStack() as stack:
            try:
                mapping = stack.enter_context(_map_pages(self._target, Extent(start, end)))
                self._guard.guard(mapping)
            except OSError as error:
                raise TargetError.from_os(error, f"map {self._target.path}") from error
            for window in windows(start, end, TMPFS_WINDOW):
                with _used(mapping, window):
                    self._copy_window(mapping, window, digest)

    def _copy_window(self, mapping: Mapping, window: Extent, digest: Digest | None) -> None:
        for piece in windows(window.start, window.end, BUFFER):
            view = self._buffer.view[: piece.size]
            self._source.read(view, piece.start + self._shift)
            if digest is not None:
                digest.add(piece.start, view)
            placed = self._place(mapping, piece)
            if placed < piece.size:
                self._write(view[placed:], piece.start + placed)

    def _place(self, mapping: Mapping, piece: Extent) -> int:
        """Put the buffer's whole pages in; returns how many bytes went in from the beginning."""
        size = piece.size - piece.size % syscalls.page_size()
        if not size or piece.start % syscalls.page_size():
            return 0
        at = mapping.address + piece.start - mapping.offset
        return syscalls.userfaultfd_copy(self._guard.fd, at, self._buffer.address, size)

    def close(self) -> None:
        self._guard.close()


class MappingSink(Sink):
    """For huge pages: the kernel reads from the source right into a mapping of the target.

    A digest is made of what is then in the target, read back while it is still in a processor's cache.
    """

    def __init__(self, source: Source, target: Target, end: int, shift: int, pages: GuardedRange | None) -> None:
        """``pages``: the mapping to use for hugetlbfs, which maps and unmaps slowly; None: windows of tmpfs."""
        super().__init__(source, target, end, shift)
        self._pages = pages

    def copy(self, start: int, end: int, digest: Digest | None) -> None:
        try:
            if self._pages is not None:
                with self._pages.window(start, end) as mapping:
                    self._read_into(mapping, Extent(start, end), digest)
            else:
                with _map_pages(self._target, Extent(start, end)) as mapping:
                    for window in windows(start, end, TMPFS_WINDOW):
                        with _used(mapping, window) as pages:
                            mapping.populate_write(pages.start - mapping.offset, pages.size)
                            self._read_into(mapping, window, digest)
        except OSError as error:
            raise page_unavailable(self._target, error, end) from error

    def _read_into(self, mapping: Mapping, extent: Extent, digest: Digest | None) -> None:
        for piece in windows(extent.start, extent.end, TMPFS_WINDOW if digest is None else BUFFER):
            self._source.read_into(mapping, piece.start - mapping.offset, piece.start + self._shift, piece.size)
            if digest is not None:
                view = self._buffer.view[: piece.size]
                if os.preadv(self._target.fd, [view], piece.start) != piece.size:
                    raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))  # truncated just now, as the copy would say
                digest.add(piece.start, view)

    def close(self) -> None:
        if self._pages is not None:
            self._pages.close()


def _map_pages(target: Target, extent: Extent) -> Mapping:
    """The pages of a chunk of tmpfs, in one mapping: to map and to unmap, a thread waits for the others' pages."""
    whole = extent.widened(syscalls.page_size())
    return Mapping(target.fd, whole.start, whole.size, reserve=False)


@contextlib.contextmanager
def _used(mapping: Mapping, window: Extent) -> Iterator[Extent]:
    """The whole pages of a window of the mapping, which does not keep them."""
    pages = window.widened(syscalls.page_size())
    try:
        yield pages
    finally:
        mapping.let_go(pages.start - mapping.offset, pages.size)


def open_sink(source: Source, target: Target, extent: Extent, shift: int) -> Sink:
    """The sink for a target that has its size; raises TargetError if it cannot be mapped."""
    if target.kind is Kind.HUGETLBFS:
        whole = extent.widened(target.page_size)
        try:
            pages = GuardedRange(target.fd, whole.start, whole.end, target.page_size, None)
        except OSError as error:
            raise TargetError.from_os(error, f"map {target.path}") from error
        return MappingSink(source, target, extent.end, shift, pages)
    if target.kind is Kind.TMPFS:
        if os.fstat(target.fd).st_blksize > syscalls.page_size():  # it has huge pages (shmem_getattr in mm/shmem.c)
            return MappingSink(source, target, extent.end, shift, None)
        with contextlib.suppress(OSError):  # a filter forbids it
            return PageSink(source, target, extent.end, shift, HoleGuard())
    return WritingSink(source, target, extent.end, shift)
