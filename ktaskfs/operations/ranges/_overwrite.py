"""Overwrite the existing pages of a file of memory, in place, with repeated content.

Holes stay holes: the kernel copies into a mapping, and a HoleGuard makes it stop where there is no page.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from ktaskfs.errors import TargetError
from ktaskfs.host.buffer import Block
from ktaskfs.host.presence import data_extents, next_page
from ktaskfs.host.target import MEMORY, FilesystemType, Target
from ktaskfs.memory.guarded_pages import GuardedPages, guarded_pages
from ktaskfs.memory.hand_code import TouchedFile, open_hands, write_repeated
from ktaskfs.memory.target_errors import page_unavailable, require_unsealed, truncated
from ktaskfs.memory.tmpfs import mapped_windows
from ktaskfs.operations.base.guard import GuardedParameters, guard
from ktaskfs.operations.ranges._many import open_many
from ktaskfs.operations.ranges._range import (
    FileParameters,
    nodes_beside_pages,
    open_range_target,
    resolve_extent,
    stands_for_many,
)
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.host.hands import Hands
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.mapping import Mapping
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation

MIN_CHUNK: Final = 16 << 20
MAX_CHUNK: Final = 64 << 20
"""Zeroing runs at 20 GiB/s a thread: chunks of 64 MiB take 3 ms, those of 16 MiB were a tenth slower."""
ALIGN: Final = 2 << 20
"""Alignment of chunks, even within a gigantic page: the largest common mapping of a CPU."""

CUTS_MAX: Final = 8
"""How often one of many files may become shorter during one chunk."""


class Content(NamedTuple):
    """The data to write: a descriptor that never ends (``period`` None), or its first ``period`` bytes, over and over.

    A period begins at every multiple of it in the file, wherever the range begins. ``block`` is one; None: zeros.
    """

    fd: int
    period: int | None
    block: bytes | None = None


class OverwriteParameters(FileParameters, GuardedParameters):
    """A range, by default to the end of the file, with the guard of files in use."""


P = TypeVar("P", bound=OverwriteParameters)


def prepare_overwrite(preparation: Preparation[P], source: Content, *, report: Callable[[int], str]) -> Plan:
    """The plan to write ``source`` over a range; ``report`` makes the result from the number of bytes written.

    Raises InvalidValue past the end of the file, NotSupported where holes hide, TargetError (EBUSY as ``guard``).
    """
    parameters = preparation.parameters
    if stands_for_many(preparation):
        return _prepare_many(preparation, source, report=report)
    target = preparation.keep(open_range_target(preparation, kinds=MEMORY))
    guard(preparation, target)
    extent = resolve_extent(parameters, target.size(), may_grow=False)
    require_unsealed(target, 0)
    nodes = nodes_beside_pages(preparation, target, extent, target.page_size)
    pages = preparation.keep(guarded_pages(target, extent))
    file = TouchedFile(target, write=True)
    touch = _HandCode(file, source.block).overwrite
    hands = preparation.hands(nodes, lambda kernel, size: open_hands(kernel, size, touch, [file]))
    writer = _Overwriter(preparation.kernel, source, target, pages, hands)

    def finish(outcome: Outcome) -> str:
        return report(writer.written)

    align = min(target.page_size, ALIGN)
    control = preparation.control(writer.overwrite, least=MIN_CHUNK, most=MAX_CHUNK, align=align)
    return preparation.plan(nodes, control, finish)


def _prepare_many(preparation: Preparation[P], source: Content, *, report: Callable[[int], str]) -> Plan:
    """Prepare for many whole files; raises the errors for one file, of the first that has one."""

    def check(target: Target) -> None:
        guard(preparation, target)
        require_unsealed(target, 0)

    files = open_many(preparation, check)
    lock, written = threading.Lock(), Counter[str]()

    def overwrite(start: int, end: int) -> None:
        for _, target, piece in files.pieces(start, end):
            size = _overwrite_rest(preparation.kernel, source, target, piece)
            with lock:
                written["bytes"] += size

    def finish(outcome: Outcome) -> str:
        return report(written["bytes"]) + files.text

    nodes = preparation.nodes(files.extent, files.page_size)
    align = min(files.page_size, ALIGN)
    control = preparation.control(overwrite, least=MIN_CHUNK, most=MAX_CHUNK, align=align)
    return preparation.plan(nodes, control, finish)


def _overwrite_rest(kernel: Kernel, source: Content, target: Target, piece: Span) -> int:
    """Overwrite what the file has of ``piece``; returns the bytes written. Raises TargetError.

    The owner of one of many files may cut it meanwhile, and does not stop the task with that.
    """
    for cuts in range(CUTS_MAX + 1):
        within = Span(piece.start, min(piece.end, target.size()))
        if within.size <= 0:
            break
        with contextlib.closing(guarded_pages(target, within)) as pages:
            writer = _Overwriter(kernel, source, target, pages)
            try:
                writer.overwrite(within.start, within.end)
            except TargetError as error:
                if error.errno != errno.ENXIO or cuts == CUTS_MAX:
                    raise
            else:
                return writer.written
    return 0


class _Overwriter:
    """The chunk function."""

    def __init__(
        self, kernel: Kernel, source: Content, target: Target, pages: GuardedPages, hands: Hands | None = None
    ) -> None:
        self._kernel = kernel
        self._hands = hands
        self._source = source
        self._target = target
        self._guard = pages.guard
        self._pages = pages.pages
        self._lock = threading.Lock()
        self.written = 0  # bytes; guarded by _lock

    def overwrite(self, start: int, end: int) -> None:
        """Overwrite the existing bytes from ``start`` to ``end``; raises TargetError."""
        if self._target.size() < end:
            raise truncated(self._target)
        if self._target.allocated() == 0:
            return
        if self._hands is not None and self._hands.do(start, end) is not None:
            with self._lock:
                self.written += end - start
            return
        try:
            with self._pages.window(start, end) as mapping:
                if self._target.filesystem is FilesystemType.TMPFS:
                    self._overwrite_tmpfs(mapping, start, end)
                else:
                    self._write_guarded(mapping, start, end)
        except OSError as error:
            raise page_unavailable(self._kernel, self._target, error, end) from error

    def _overwrite_tmpfs(self, mapping: Mapping, start: int, end: int) -> None:
        """By extents of data, window by window. Populating first maps many pages in one call."""
        for run in data_extents(self._target.fd, start, end):
            for window, pages in mapped_windows(mapping, run):
                if self._guard is not None:
                    self._try_populate(mapping, pages)
                self._write_guarded(mapping, window.start, window.end)
        if self._target.size() < end:
            raise truncated(self._target)

    def _try_populate(self, mapping: Mapping, pages: Span) -> None:
        try:
            mapping.populate_write(pages.start - mapping.offset, pages.size)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            # A page was punched out: the write finds the hole and skips it.

    def _write_guarded(self, mapping: Mapping, start: int, end: int) -> None:
        position, written = start, 0
        while position < end:
            try:
                count = self._write(mapping, position, end)
                position, written = position + count, written + count
            except OSError as error:
                if error.errno != errno.EFAULT or self._guard is None:
                    raise
                position = self._skip_hole(mapping, position, end)
        with self._lock:
            self.written += written

    def _write(self, mapping: Mapping, position: int, end: int) -> int:
        period, at, length = self._source.period, None, end - position
        if period is not None:
            at = position % period
            length = min(length, period - at)
        return mapping.readv_into(self._source.fd, at, position - mapping.offset, length)

    def _skip_hole(self, mapping: Mapping, position: int, end: int) -> int:
        """The next page that exists, or ``end``: page by page, where a poisoned page raises and a hole does not."""
        size = self._target.page_size
        first = position - position % size
        position = max(position, next_page(mapping, first, -(-end // size) * size, size))
        if self._target.size() < min(position, end):
            raise truncated(self._target)
        return min(position, end)


class _HandCode:
    """The chunk function of a hand; ``block`` is repeated, None stands for zeros."""

    def __init__(self, file: TouchedFile, block: bytes | None) -> None:
        self._file = file
        block = block or b"\0"
        if block.count(block[0]) == len(block):
            block = block[:1]
        self._block = Block(block)

    def overwrite(self, start: int, end: int) -> bytes:
        """Write over a chunk that has all of its pages; raises OSError."""
        with self._file.mapped(start, end) as address:
            write_repeated(address, end - start, self._block, start % self._block.size)
        return b""
