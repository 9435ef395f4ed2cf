"""``fallocate``: allocate and zero the pages that a range of a file of memory lacks.

fallocate(2) does this for hugetlbfs under the lock of the inode, one thread at a time. Populating a shared mapping
needs no such lock (madvise(2), MADV_POPULATE_WRITE), and mapping it sets all the missing pages aside at once.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import NotSupported, TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.mapped_range import MappedRange
from ktaskfs.host.mapping import HoleGuard, Mapping
from ktaskfs.host.presence import data_extents, hole_extents, missing_pages, zero_pages
from ktaskfs.host.target import MEMORY, SEAL_GROW, Filesystem, Target, open_target
from ktaskfs.ktask import NO_NODE, Control, LinuxMachine
from ktaskfs.ktask.machine import place_on_node
from ktaskfs.memory.growth import Growth
from ktaskfs.memory.room import require_file_size, require_pool, require_space
from ktaskfs.memory.runlog import RunLog
from ktaskfs.memory.tmpfs import mapped_windows
from ktaskfs.memory.trouble import page_unavailable, require_unsealed
from ktaskfs.operations.base.nodes import chunk_sizes, make_nodes
from ktaskfs.operations.base.operation import Plan
from ktaskfs.operations.base.parameters import FLAG, OCTAL, parameter
from ktaskfs.operations.ranges._range import RangeOperation, RangeParameters, require_whole_pages, resolve_extent
from ktaskfs.span import Node, Span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ktaskfs.host.kernel import Kernel

MIN_CHUNK: Final = 16 << 20
MAX_CHUNK: Final = 64 << 20
"""A thread zeroes 2 MiB pages at about 9 GiB/s: 64 MiB take 7 ms; below 16 MiB the calls begin to show."""
UNDO_WINDOW: Final = 256 << 20
"""Bytes freed at a time, as in ``free``: nobody waits longer for the lock of the inode."""


@dataclass(frozen=True, kw_only=True)
class FallocateParameters(RangeParameters):
    """A range, the file's mode, and what becomes of its size."""

    mode: int = parameter(OCTAL, "permissions of a file that is created (the umask applies)", default=0o600)
    keep_size: bool = parameter(FLAG, "leave the file's size as it is, even if pages come past its end", default=False)


class Fallocate(RangeOperation[FallocateParameters]):
    """Reserve in ``prepare``, populate in the chunks.

    Pages of hugetlbfs that were set aside and not populated (a cancelled task) stay set aside for the file, until it
    is truncated below them or removed: the kernel knows no other way to give them back.
    """

    name = "fallocate"
    description = (
        "Allocate and zero the missing pages of the range. Creates the file, and extends it. "
        "Huge pages are all reserved before the first is touched. What undo=1 takes back are pages that read as zeros; "
        "if others have written to some, the result says how many bytes were kept."
    )
    parameters = FallocateParameters

    def prepare(self, kernel: Kernel, parameters: FallocateParameters, remaining: Sequence[Node] | None) -> Plan:
        """Open or create, check, reserve, extend.

        Raises OutOfHugePages, OutOfSpace, InvalidValue for a range that is not whole pages, and TargetError: EPERM
        for a sealed file, EFBIG past the caller's RLIMIT_FSIZE, ENOMEM for more tmpfs than there is memory.
        """
        target = open_target(kernel, parameters.path, kinds=MEMORY, create=parameters.mode)
        with contextlib.ExitStack() as stack:
            stack.callback(target.close)
            growth = Growth(kernel, target)
            stack.callback(growth.take_back)
            extent, size = _extent(parameters, target, growth.old_size, rest=remaining is not None)
            grows = size > growth.old_size or _past_end(target, extent, size)
            require_unsealed(target, SEAL_GROW if grows else 0)
            nodes = make_nodes(kernel, extent, parameters.nodes, target.page_size, remaining)
            nid = nodes[-1].nid if nodes else NO_NODE
            filler = _filler(kernel, target, growth, extent, size, nid, undo=parameters.undo)
            stack.pop_all()
        sizes = chunk_sizes(parameters.chunk, least=MIN_CHUNK, most=MAX_CHUNK, align=target.page_size)
        control = Control(
            filler.fill,
            min_chunk_size=sizes.least,
            max_chunk_size=sizes.most,
            align=sizes.align,
            undo_func=filler.undo if parameters.undo else None,
        )
        return Plan(nodes=nodes, control=control, abort=filler.abort, finish=filler.finish)


def _extent(parameters: FallocateParameters, target: Target, old_size: int, *, rest: bool) -> tuple[Span, int]:
    """The range in whole pages, and the size that the file is to have. Raises InvalidValue.

    A range to the end of the file, or to where that was for the run that left a ``rest``, has the rest of its last page
    too, and leaves the size as it is.
    """
    extent = resolve_extent(parameters, old_size, may_grow=True)
    size = old_size if parameters.keep_size else max(extent.end, old_size)
    if parameters.length is None or rest:
        extent = Span(extent.start, Span(0, extent.end).widened(target.page_size).end)
    require_whole_pages(extent, target.page_size, parameters.path)
    return extent, size


def _past_end(target: Target, extent: Span, size: int) -> bool:
    """Whether the range has pages that lie past the last one of a file of ``size`` bytes."""
    return extent.end > Span(0, size).widened(target.page_size).end


@contextlib.contextmanager
def _near(nid: int) -> Iterator[None]:
    """Have what this thread allocates meanwhile come from a node, as the threads of the task do."""
    if nid == NO_NODE:
        yield
        return
    machine = LinuxMachine()
    before = machine.placement()
    machine.place(place_on_node(before, nid, frozenset()))
    try:
        yield
    finally:
        machine.place(before)


def _filler(
    kernel: Kernel, target: Target, growth: Growth, extent: Span, size: int, nid: int, *, undo: bool
) -> _Filler:
    """Check for room, set it aside, extend to ``size``; ``nid`` is the node of the last page."""
    past_end = _past_end(target, extent, size)
    with contextlib.ExitStack() as stack:
        survey = _Survey(target, extent, stack) if undo else None
        if undo and past_end and not growth.is_empty():
            raise NotSupported(f"undo=1: {target.path} has pages past its end; hugetlbfs does not tell which")
        mapping = pages = None
        try:
            if past_end:
                require_file_size(target, extent.end)
            if target.filesystem is Filesystem.TMPFS:
                require_space(kernel, target, extent)
                if not past_end:
                    with _near(nid):
                        made = growth.extend(size)
                    if survey is not None:
                        survey.add(made)
                    pages = MappedRange(target.fd, extent.start, extent.end, target.page_size, None)
                    stack.callback(pages.close)
            elif past_end:
                # A reservation past the end of the file would outlive a task that never starts.
                require_pool(kernel, target, extent.size // target.page_size, promised=False)
            else:
                mapping = growth.reserve(extent)
                stack.callback(mapping.close)
        except OSError as error:
            raise TargetError.from_os(error, f"allocate {target.path}") from error
        return _Filler(target, growth, extent, mapping, pages, survey, min(size, extent.end), stack.pop_all())


class _Survey:
    """Finds the missing pages before they are filled, exactly, or refuses to try."""

    def __init__(self, target: Target, extent: Span, stack: contextlib.ExitStack) -> None:
        self._target = target
        self._extent = extent
        self._pages: MappedRange | None = None
        self.log = RunLog()
        try:
            if target.filesystem is Filesystem.HUGETLBFS:
                guard = HoleGuard()
                stack.callback(guard.close)
                self._pages = MappedRange(target.fd, extent.start, extent.end, target.page_size, guard)
                stack.callback(self._pages.close)
        except OSError as error:
            raise NotSupported(f"undo=1 needs userfaultfd here: {error.strerror}") from error
        if self._pages is None:
            data = sum(hole - data for data, hole in data_extents(target.fd, 0, target.size()))
            if data + target.page_size <= target.allocated():  # data may end before its page, with the file
                raise NotSupported(
                    f"undo=1: {target.path} has pages that were allocated and never written; tmpfs does not tell which"
                )

    def add(self, made: Span) -> None:
        """Remember what was missing and has been allocated already, as far as it lies in the range."""
        start, end = max(made.start, self._extent.start), min(made.end, self._extent.end)
        if start < end:
            self.log.add(start, end)

    def record(self, start: int, end: int) -> None:
        """Remember the missing pages of a chunk. Raises TargetError when there are too many runs of them."""
        if self._pages is None:
            runs: Iterator[Span] = hole_extents(self._target.fd, start, end)
        else:
            runs = missing_pages(self._pages, start, end, self._target.page_size)
        page = self._target.page_size
        for low, high in runs:
            low = -(-low // page) * page  # the end of the file is no end of its page
            if low < high:
                self.log.add(low, high)


class _Filler:
    """The chunk function and what it holds open.

    ``mapping`` is set for hugetlbfs, ``pages`` for tmpfs, and neither for pages past the end of the file. A file that
    ends before ``end`` was truncated meanwhile.
    """

    def __init__(
        self,
        target: Target,
        growth: Growth,
        extent: Span,
        mapping: Mapping | None,
        pages: MappedRange | None,
        survey: _Survey | None,
        end: int,
        resources: contextlib.ExitStack,
    ) -> None:
        self._target = target
        self._growth = growth
        self._extent = extent
        self._mapping = mapping
        self._pages = pages
        self._survey = survey
        self._end = end
        self._resources = resources
        self._lock = threading.Lock()
        # Both guarded by _lock.
        self._kept = 0  # bytes in chunks that were finished and not undone
        self._others = 0  # bytes in pages that were not taken back, because somebody has written to them

    def fill(self, start: int, end: int) -> None:
        """Allocate the missing pages from ``start`` to ``end``; raises TargetError."""
        try:
            if self._survey is not None:
                self._survey.record(start, end)
            self._allocate(start, end)
        except OSError as error:
            unavailable = page_unavailable(self._target, error, self._end)
            if self._survey is not None:  # the framework knows of finished chunks only
                try:
                    self._take_back(self._survey, start, end)
                except OSError as failure:
                    unavailable.add_note(f"undo failed at {start}: {failure.strerror}")
            raise unavailable from error
        with self._lock:
            self._kept += end - start

    def _allocate(self, start: int, end: int) -> None:
        if self._mapping is not None:
            self._mapping.populate_write(start - self._extent.start, end - start)
        elif self._pages is not None:
            with self._pages.window(start, end) as mapping:
                for _, pages in mapped_windows(mapping, start, end):
                    mapping.populate_write(pages.start - mapping.offset, pages.size)
        else:
            syscalls.fallocate(self._target.fd, syscalls.FALLOC_FL_KEEP_SIZE, start, end - start)

    def undo(self, start: int, end: int) -> None:
        """Free the pages of a finished range that were missing before; raises OSError."""
        assert self._survey is not None
        self._take_back(self._survey, start, end)
        with self._lock:
            self._kept -= end - start

    def _take_back(self, survey: _Survey, start: int, end: int) -> None:
        """But for pages that somebody has written to; what is written between the look and the call is lost."""
        page = self._target.page_size
        for low, high in survey.log.within(start, end):
            for piece in Span(low, high).windows(max(UNDO_WINDOW, page)):
                freed = 0
                for first, last in zero_pages(self._target.fd, piece.start, piece.end, page):
                    syscalls.punch_hole(self._target.fd, first, last)
                    freed += last - first
                with self._lock:
                    self._others += piece.size - freed

    def abort(self) -> None:
        """Take back what ``prepare`` made, as if nothing had been asked, and close everything."""
        self._resources.close()
        self._growth.take_back()
        self._target.close()

    def finish(self) -> str:
        """Close everything; if all was undone, take back what ``prepare`` made too.

        The result is empty, or ``kept BYTES`` where others had written to pages that were to be taken back.
        """
        self._resources.close()
        if self._survey is not None and self._kept == 0:
            self._growth.take_back()
        self._target.close()
        return f"kept {self._others}\n" if self._others else ""
