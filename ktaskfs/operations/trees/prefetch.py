"""``prefetch``: read every regular file below a directory into the page cache."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.buffer import Buffer
from ktaskfs.host.group_limits import memory_headroom
from ktaskfs.host.page_cache import cached_bytes, huge_read, read_in_huge_pages
from ktaskfs.host.presence import data_extents
from ktaskfs.operations.base.parameters import FLAG, parameter
from ktaskfs.operations.trees._files import FileList, Piece, TreeParameters
from ktaskfs.operations.trees._pieces import PieceOperation, PieceWork
from ktaskfs.span import Span
from ktaskfs.units import BYTES, compared_sizes

if TYPE_CHECKING:
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Preparation

WINDOW: Final = 1 << 20
"""Bytes that are looked at, and read, in one go where some of a piece is in the cache: a disk is busy with so many."""
TOUCH: Final = 256 << 10
"""Bytes of one pread(2)."""


class PrefetchParameters(TreeParameters):
    """A directory, or one file."""

    touch: bool = parameter(FLAG, "read all data with pread(2), even cached data (slower)", default=False)
    force: bool = parameter(FLAG, "read even more bytes than memory is available (0: ENOMEM)", default=False)


class Prefetch(PieceOperation[PrefetchParameters]):
    """Whole huge pages by page faults, the rest by sendfile(2) to a device that drops everything.

    Both return when the pages are in the cache, and copy nothing. readahead(2) and POSIX_FADV_WILLNEED read at most
    the device's read_ahead_kb at once, and do not report that. A hole is skipped: it has no data on the disk.
    """

    name = "prefetch"
    description = (
        "Read every regular file under path into the page cache, except pages already there; large files get huge "
        "pages where the filesystem can have them; links=1 also follows links. The result has the number of files, the "
        "bytes that were cached or being read before, the bytes read, those of them that the filesystem does not keep "
        "in the cache, and the skipped files with reasons; after a resume, those of the last run. The task fails if it "
        "reads no file and skips some."
    )
    units = BYTES
    parameters = PrefetchParameters
    # In bytes, of which each file takes 4 KiB more than it has.
    least, most = 1 << 20, 16 << 20
    no_undo = "the kernel drops the pages when memory is short; evict drops them at once"

    def work(self, files: FileList, preparation: Preparation[PrefetchParameters]) -> PieceWork:
        """Raises TargetError, ENOMEM for more than there is memory for."""
        if not preparation.parameters.force:
            _require_memory(preparation, files.bytes)
        return _Prefetcher(files, preparation)


def _require_memory(preparation: Preparation[PrefetchParameters], size: int) -> None:
    """Raises TargetError if the last pages would displace the first ones."""
    headroom = memory_headroom(preparation.kernel)
    available = preparation.kernel.available_memory(swap=False)
    has, left = compared_sizes(size, available)
    why = f"{left} are available"
    if headroom is not None and headroom.left < available:
        available, (has, why) = headroom.left, headroom.beside(size)
    if size > available:
        text = f"{preparation.parameters.path} has {has}, and {why}: force=1 reads it anyway"
        raise TargetError(text, errno=errno.ENOMEM)


class _Prefetcher(PieceWork):
    """Reads the missing data."""

    def __init__(self, files: FileList, preparation: Preparation[PrefetchParameters]) -> None:
        super().__init__(files)
        self._buffer = Buffer(TOUCH) if preparation.parameters.touch else None
        kernel = preparation.kernel
        try:
            # Like /dev/null: it drops its input.
            self._sink = kernel.reopen(kernel.zero, os.O_WRONLY)
        except OSError as error:
            raise TargetError.from_os(error, "open /dev/zero for writing") from error
        preparation.callback(os.close, self._sink)
        self._huge = huge_read(kernel)

    def piece(self, fd: int, piece: Piece, *, overlay: bool) -> None:
        if self._buffer is not None:
            found, read = 0, _touch(fd, piece, self._buffer)
        else:
            # All is looked at before anything is read, since the kernel then reads ahead, and those pages would count.
            found, missing = _look_at(fd, piece.extent, overlay=overlay)
            read = sum(self._read(fd, extent) for extent in missing)
        not_kept = read if read and not found and self._is_lost(fd, piece, overlay=overlay) else 0
        self.report.enter(piece, bytes=piece.extent.size, cached=found, read=read, not_kept=not_kept)

    def _is_lost(self, fd: int, piece: Piece, *, overlay: bool) -> bool:
        """Whether the next program that opens the file finds nothing of a piece in the cache.

        The filesystem may have a cache of its own (ZFS), or none (DAX); FUSE drops the cache at an open, unless the
        server keeps it. Raises OSError.
        """
        with contextlib.ExitStack() as stack:
            if syscalls.is_served(fd):
                fd = self.files.open(piece.file)
                stack.callback(os.close, fd)
            cached = cached_bytes(fd, piece.start, piece.end, overlay=overlay)
        return cached is not None and not cached.resident

    def _read(self, fd: int, extent: Span) -> int:
        """Read the missing data; returns the bytes of it that the file still has.

        A huge page belongs to the extent in which it begins.
        """
        if not 0 < self._huge <= extent.size:
            return self._send(fd, *extent)
        first = extent.start + -extent.start % self._huge
        try:
            read_in_huge_pages(fd, Span(first, extent.end))
        except OSError:  # no such mappings, a broken disk, a shorter file: sendfile(2) reads what there is, or says why
            return self._send(fd, *extent)
        return self._send(fd, extent.start, first) + extent.end - first

    def _send(self, fd: int, start: int, end: int) -> int:
        position = start
        while position < end:
            sent = os.sendfile(self._sink, fd, position, end - position)
            if not sent:  # the file is shorter now
                break
            position += sent
        return position - start

    def finish(self, outcome: Outcome) -> str:
        sums = self.report.sums
        text = self.report.text({name: sums[name] for name in ("bytes", "cached", "read", "not_kept")})
        return self.report.require_some(text, "read")


def _touch(fd: int, piece: Piece, buffer: Buffer) -> int:
    position = piece.start
    while position < piece.end:
        count = os.preadv(fd, [buffer.view[: piece.end - position]], position)
        if not count:
            break
        position += count
    return position - piece.start


def _look_at(fd: int, extent: Span, *, overlay: bool) -> tuple[int, list[Span]]:
    """How many bytes of a piece of a file are in the cache, and which of its data are not, by windows."""
    if _is_there(fd, extent, overlay=overlay):
        return extent.size, []
    found, missing = 0, [Span(extent.start, extent.start)]
    for run in data_extents(fd, extent.start, extent.end):
        for start in range(run.start, run.end, WINDOW):
            window = Span(start, min(start + WINDOW, run.end))
            if _is_there(fd, window, overlay=overlay):
                found += window.size
            elif missing[-1].end == start:
                missing[-1] = Span(missing[-1].start, window.end)
            else:
                missing.append(window)
    return found, missing


def _is_there(fd: int, extent: Span, *, overlay: bool) -> bool:
    cached = cached_bytes(fd, extent.start, extent.end, overlay=overlay)
    return cached is not None and cached.resident >= extent.widened(syscalls.page_size()).size
