"""Sinks, the files that operations write, each with the fastest way that cannot cause SIGBUS on its filesystem."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import TargetError
from ktaskfs.host import syscalls, userfaultfd
from ktaskfs.host.buffer import Buffer
from ktaskfs.host.mapped_range import MappedRange
from ktaskfs.host.mapping import HoleGuard
from ktaskfs.host.target import FilesystemType
from ktaskfs.memory.room import missing_bytes, require_file_size
from ktaskfs.memory.target_errors import page_unavailable, truncated
from ktaskfs.memory.tmpfs import WINDOW, has_huge_pages, mapped_windows
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.mapping import Mapping
    from ktaskfs.host.target import Target
    from ktaskfs.memory.digest import Parts
    from ktaskfs.memory.source import MappedSource, Source

BUFFER: Final = 512 << 10
"""Size of the copy buffer, which fits a CPU's own cache. Two threads took 5 % more CPU time with 256 KiB on an EPYC; a
thread was slower by a tenth with 1 MiB on a Xeon."""
SENT: Final = 1 << 20
"""Bytes of one sendfile(2), before which the target's size is checked."""
FEW: Final = 64 << 10
"""Shorter runs between two holes are written instead of inserted through mappings: a third of the time at 4 KiB."""
NEAR: Final = 8 << 10
"""Bytes of a hole that is read with the data on both sides, because a system call takes longer than its zeros."""
GATHERED: Final = 256 << 10
"""Bytes of data and such holes that are read at once. With 64 KiB, a hole of 4 KiB took a tenth more CPU time."""


class Sink(ABC):
    """Copies ranges of a source to their place in ``target``.

    ``end`` is the end of the whole copy: a shorter target was truncated meanwhile. A position in the target plus
    ``shift`` is the position in the source. Every ``copy`` and ``clear`` raises TargetError.
    """

    def __init__(self, source: Source, target: Target, end: int, shift: int) -> None:
        self._source = source
        self._target = target
        self._end = end
        self._shift = shift
        self._buffer = Buffer(BUFFER)

    @abstractmethod
    def copy(self, extent: Span, digest: Parts | None) -> None:
        """Copy to ``extent``, a range of the target; ``digest`` gets the data in order, by its position there."""

    def copy_near(self, runs: Sequence[Span]) -> None:
        """Copy to several ranges of the target that ``near`` put together, not to the holes between them."""
        for run in runs:
            self.copy(run, None)

    def missing(self, runs: Iterable[Span]) -> int:
        """Bytes of the pages that the target lacks in ``runs``. Raises OSError, and what making the runs raises."""
        return sum(missing_bytes(self._target, run) for run in runs)

    def clear(self, extent: Span, digest: Parts | None) -> None:
        """Punch a hole, or write zeros where that is impossible, as in a part of a hugetlbfs page."""
        if self._target.filesystem is FilesystemType.HUGETLBFS:
            page = self._target.page_size
            first = min(-(-extent.start // page) * page, extent.end)
            last = max(extent.end // page * page, first)
            self._zero(Span(extent.start, first), digest)
            self._make_hole(Span(first, last), digest)
            self._zero(Span(last, extent.end), digest)
        else:
            self._make_hole(extent, digest)

    def _make_hole(self, extent: Span, digest: Parts | None) -> None:
        if extent.size == 0:
            return
        try:
            syscalls.punch_hole(self._target.fd, extent.start, extent.end)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise TargetError.from_os(error, f"punch a hole in {self._target.path}") from error
            self.copy(extent, digest)
        else:
            if digest is not None:
                digest.add_zeros(extent.start, extent.end)

    def _zero(self, extent: Span, digest: Parts | None) -> None:
        """Clear a part of a huge page, which Linux before 6.0 omits when it punches a hole. Allocates no page."""
        for piece in extent.windows(BUFFER):
            try:
                there = os.pread(self._target.fd, piece.size, piece.start)
            except OSError as error:
                raise TargetError.from_os(error, f"read {self._target.path}") from error
            if there != bytes(piece.size):
                self.copy(piece, digest)
            elif digest is not None:
                digest.add_zeros(piece.start, piece.end)

    def close(self) -> None:
        """Unmap everything; the target stays open."""
        return


class WritingSink(Sink):
    """Reads into a buffer and writes it with pwrite(2), which must not extend a truncated file."""

    def copy(self, extent: Span, digest: Parts | None) -> None:
        for piece, view in self._pieces(extent, digest):
            self._write(view, piece.start)

    def copy_near(self, runs: Sequence[Span]) -> None:
        """One read for all. The target's size is checked before the first write and the last: a truncation between
        them leaves it too short until the last."""
        first, last = runs[0], runs[-1]
        view = self._buffer.view[: last.end - first.start]
        self._source.read(view, first.start + self._shift)
        self._write(view[: first.size], first.start)
        try:
            for low, high in runs[1:-1]:
                done = os.pwrite(self._target.fd, view[low - first.start : high - first.start], low)
                if done < high - low:
                    self._write(view[low - first.start + done : high - first.start], low + done)
        except OSError as error:
            raise TargetError.from_os(error, f"write {self._target.path}") from error
        self._write(view[last.start - first.start :], last.start)

    def _pieces(self, extent: Span, digest: Parts | None) -> Iterator[tuple[Span, memoryview]]:
        """The extent piece by piece in the buffer, after ``digest`` has it. Raises TargetError."""
        for piece in extent.windows(BUFFER):
            view = self._buffer.view[: piece.size]
            self._source.read(view, piece.start + self._shift)
            if digest is not None:
                digest.add(piece.start, view)
            yield piece, view

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
    """For tmpfs of ordinary pages: userfaultfd(2), UFFDIO_COPY, inserts missing whole pages.

    The kernel copies once, directly from the pages of a mapped source, without clearing first. sendfile(2) takes less
    time, but holds the lock of the inode while it copies: so one thread at a time sends, while the others insert.
    Populating a mapping needs no lock but clears each page first, and costs twice as much. If the kernel cannot insert
    a page (it exists, no page is free, or the source lacks it), the page is read and written instead, which reports any
    error.

    For huge pages it would save a quarter of the time, but if a hugetlbfs file is truncated during the call, the
    kernel miscounts its reserved pages (hugetlb_mfill_atomic_pte in mm/hugetlb.c; seen on Linux 6.18), for everybody.
    """

    def __init__(self, source: Source, target: Target, extent: Span, shift: int) -> None:
        """Raises OSError if a filter forbids it."""
        super().__init__(source, target, extent.end, shift)
        whole = extent.widened(target.page_size)
        self._sender = threading.Lock()
        self._guard = HoleGuard()
        try:
            self._pages = MappedRange(target.fd, whole.start, whole.end, target.page_size, self._guard)
        except BaseException:
            self._guard.close()
            raise
        source.map()

    def copy(self, extent: Span, digest: Parts | None) -> None:
        """Copy it: through a buffer with a digest, and few pages with write(2), which takes fewer calls."""
        if extent.size < FEW:
            super().copy(extent, digest)
            return
        done = extent.start
        if digest is None and self._sender.acquire(blocking=False):
            try:
                done = self._send(extent)
            finally:
                self._sender.release()
        if done < extent.end:
            self._insert(Span(done, extent.end), digest)

    def missing(self, runs: Iterable[Span]) -> int:
        with self._sender:  # lseek(2) moves the offset of the descriptor, at which sendfile(2) writes
            return super().missing(runs)

    def _send(self, extent: Span) -> int:
        """Returns the end of the part that was sent; the other ways report why the next byte was not."""
        done = extent.start
        for piece in extent.windows(SENT):
            while done < piece.end:
                if self._target.size() < self._end:
                    raise truncated(self._target)
                try:
                    os.lseek(self._target.fd, done, os.SEEK_SET)
                    count = self._source.send(self._target.fd, done + self._shift, piece.end - done)
                except OSError:
                    return done
                if not count:
                    return done
                done += count
        return done

    def _insert(self, extent: Span, digest: Parts | None) -> None:
        with contextlib.ExitStack() as stack:
            try:
                mapping = stack.enter_context(self._pages.window(extent.start, extent.end))
            except OSError as error:
                raise TargetError.from_os(error, f"map {self._target.path}") from error
            origin = None
            if digest is None:
                origin = stack.enter_context(self._source.mapped(*extent.shifted(self._shift)))
            for window, _ in mapped_windows(mapping, extent):
                done = window.start if origin is None else self._put_from(origin, mapping, window)
                if done == window.start and done % self._target.page_size == 0:
                    origin = None  # the rest of the chunk probably exists, too
                self._copy_through_buffer(mapping, Span(done, window.end), digest)

    def _put_from(self, origin: MappedSource, mapping: Mapping, window: Span) -> int:
        """Returns the end of the inserted part of the window."""
        try:
            with origin.window(*window.shifted(self._shift)) as address:
                return window.start + self._put(mapping, window, address)
        except OSError:
            return window.start

    def _put(self, mapping: Mapping, extent: Span, address: int) -> int:
        """Insert whole pages from ``address``; returns the number of bytes inserted from the start."""
        page = self._target.page_size
        size = extent.size - extent.size % page
        if not size or extent.start % page:
            return 0
        return userfaultfd.copy(self._guard.fd, mapping.address + extent.start - mapping.offset, address, size)

    def _copy_through_buffer(self, mapping: Mapping, extent: Span, digest: Parts | None) -> None:
        for piece, view in self._pieces(extent, digest):
            placed = self._put(mapping, piece, self._buffer.address)
            if placed < piece.size:
                self._write(view[placed:], piece.start + placed)

    def close(self) -> None:
        self._pages.close()
        self._guard.close()


class MappingSink(Sink):
    """For huge pages: the kernel reads from the source directly into a mapping of the target.

    A digest covers the target's new data, read back while it is in a CPU cache.
    """

    def __init__(
        self, kernel: Kernel, source: Source, target: Target, end: int, shift: int, pages: MappedRange
    ) -> None:
        super().__init__(source, target, end, shift)
        self._kernel = kernel
        self._pages = pages

    def copy(self, extent: Span, digest: Parts | None) -> None:
        try:
            with self._pages.window(extent.start, extent.end) as mapping:
                if self._target.filesystem is not FilesystemType.TMPFS:
                    self._read_into(mapping, extent, digest)
                    return
                for window, _ in mapped_windows(mapping, extent):
                    self._read_into(mapping, window, digest)
        except OSError as error:
            raise page_unavailable(self._kernel, self._target, error, self._end) from error

    def _read_into(self, mapping: Mapping, extent: Span, digest: Parts | None) -> None:
        for piece in extent.windows(WINDOW if digest is None else BUFFER):
            self._source.read_into(mapping, piece.start - mapping.offset, piece.start + self._shift, piece.size)
            if digest is not None:
                view = self._buffer.view[: piece.size]
                if os.preadv(self._target.fd, [view], piece.start) != piece.size:
                    raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))  # truncated just now
                digest.add(piece.start, view)

    def close(self) -> None:
        self._pages.close()


def near(runs: Iterable[Span]) -> Iterator[list[Span]]:
    """The runs, in order; those below FEW with holes of up to NEAR between them together, GATHERED bytes at most."""
    together: list[Span] = []
    start, latest = 0, -1  # where ``together`` begins, and where a run that joins it begins at the latest
    for run in runs:
        low, high = run
        few = high - low < FEW
        if few and low <= latest and high - start <= GATHERED:
            together.append(run)
        else:
            if together:
                yield together
            together, start = [run], low
        latest = high + NEAR if few else -1
    if together:
        yield together


def is_written(target: Target) -> bool:
    """Whether copies into the file may use write(2): it has no huge pages. Raises OSError."""
    on_tmpfs = target.filesystem is FilesystemType.TMPFS
    return target.filesystem is FilesystemType.OTHER or (on_tmpfs and not has_huge_pages(target.fd))


def open_sink(kernel: Kernel, source: Source, target: Target, extent: Span, shift: int) -> Sink:
    """The sink for a target that already has its new size.

    Raises TargetError if it cannot be mapped, OSError (EFBIG) for a write past the caller's RLIMIT_FSIZE.
    """
    if is_written(target):
        require_file_size(target, extent.end, written=True)
        if target.filesystem is FilesystemType.TMPFS:
            with contextlib.suppress(OSError):  # a filter forbids it
                return PageSink(source, target, extent, shift)
        return WritingSink(source, target, extent.end, shift)
    whole = extent.widened(target.page_size)
    try:
        pages = MappedRange(target.fd, whole.start, whole.end, target.page_size, None)
    except OSError as error:
        raise TargetError.from_os(error, f"map {target.path}") from error
    return MappingSink(kernel, source, target, extent.end, shift, pages)
