"""A file that an operation writes, by whichever way its filesystem takes data fastest without a risk of SIGBUS."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.buffer import Buffer
from ktaskfs.host.target import Filesystem
from ktaskfs.memory.trouble import truncated
from ktaskfs.span import Span

if TYPE_CHECKING:
    from ktaskfs.host.target import Target
    from ktaskfs.memory.digest import Digest
    from ktaskfs.memory.source import Source

BUFFER: Final = 256 << 10
"""Bytes on their way in a processor's own cache: at 1 MiB a thread was slower by a tenth."""


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
        if self._target.filesystem is Filesystem.HUGETLBFS:
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
        for piece in Span(start, end).windows(BUFFER):
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
        for piece in Span(start, end).windows(BUFFER):
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
