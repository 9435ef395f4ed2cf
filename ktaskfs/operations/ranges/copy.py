"""``copy``: from any file into a file of memory, which may lack write(2), or from one into any file."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import InvalidValue, NotSupported, TargetError
from ktaskfs.host.presence import gaps
from ktaskfs.host.syscalls import is_served
from ktaskfs.host.target import SEAL_GROW, FilesystemType, Target, open_target, time_of_change
from ktaskfs.memory.digest import ALGORITHMS, LEAF, Parts, digest_maker, labelled
from ktaskfs.memory.growth import Growth
from ktaskfs.memory.lost_writes import LostWrites
from ktaskfs.memory.room import (
    available_memory,
    missing_bytes,
    mount_room,
    require_file_size,
    require_pool,
    require_reservable,
    require_space,
    too_little_space,
)
from ktaskfs.memory.sinks import is_written, near, open_sink
from ktaskfs.memory.source import DIRECT_BLOCK, Source
from ktaskfs.memory.target_errors import require_unsealed, truncated
from ktaskfs.operations.base.guard import GuardedParameters, guard
from ktaskfs.operations.base.parameters import FLAG, LENGTH, OCTAL, PATH, SIZE, choice, parameter
from ktaskfs.operations.ranges._range import (
    RangeOperation,
    RangeParameters,
    nodes_beside_pages,
    require_right_place,
    source_length,
)
from ktaskfs.span import Span
from ktaskfs.units import SIZE_MAX, format_size

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.ktask import Outcome
    from ktaskfs.memory.sinks import Sink
    from ktaskfs.operations.base.plan import Plan, Preparation

MIN_CHUNK: Final = 16 << 20
MAX_CHUNK: Final = 64 << 20
"""At 4 GiB/s a thread, 15 ms; to or from a disk a fraction of a second."""
ALIGN: Final = 2 << 20
"""Alignment of chunks, even within a gigantic page: the largest common mapping of a CPU."""


class CopyParameters(RangeParameters, GuardedParameters):
    """A range of ``path``, and the source; without ``length`` the whole source."""

    length: int | None = parameter(LENGTH, "bytes to copy (default: to the end of source)", default=None)
    source: str = parameter(PATH, "the file to copy from")
    source_offset: int = parameter(SIZE, "first byte of source to copy", default=0)
    mode: int = parameter(OCTAL, "permissions of a file that is created (the umask applies)", default=0o600)
    keep_size: bool = parameter(FLAG, "do not extend path: refuse a range past its end", default=False)
    sparse: bool = parameter(FLAG, "keep holes of the source as holes; 0: write zeros", default=True)
    direct: bool = parameter(FLAG, "read past the page cache (O_DIRECT)", default=False)
    digest: str | None = parameter(
        choice(*ALGORITHMS), "write the digest of the copied data into result, as checksum does", default=None
    )


class Copy(RangeOperation[CopyParameters]):
    """Data outside of the range stays, as with dd conv=notrunc. An empty source changes nothing."""

    name = "copy"
    target = "a file"
    description = (
        "Copy source into path, also to and from hugetlbfs, which has no write(2). Creates and extends path. Reserves "
        "all huge pages before it touches the first; holes stay holes."
    )
    parameters = CopyParameters
    creates = past_end = True
    no_undo = "overwritten data is lost"

    def resume_refusal(self, parameters: CopyParameters) -> str:
        """A copy can go on, a digest of it cannot."""
        return "the digest of the finished part is lost" if parameters.digest is not None else ""

    def prepare(self, preparation: Preparation[CopyParameters]) -> Plan:
        """Open both, create, check, reserve, extend.

        Raises OutOfHugePages, OutOfSpace, InvalidValue for ranges past an end that stays or that overlap in one file,
        NotSupported for a source that cannot be read as asked, TargetError (EBUSY as ``guard``).
        """
        kernel, parameters = preparation.kernel, preparation.parameters
        if parameters.direct and (parameters.offset % DIRECT_BLOCK or parameters.source_offset % DIRECT_BLOCK):
            raise InvalidValue(f"direct=1: offset and source_offset must be multiples of {format_size(DIRECT_BLOCK)}")
        target = _existing_target(preparation, self.kinds)
        source = preparation.keep(Source(kernel, parameters.source, direct=parameters.direct))
        extent = _extent(parameters, source, rest=preparation.resumes)
        digest = None if parameters.digest is None else _Copied(parameters.digest, extent.start)
        if target is None:
            path, mode, plan = parameters.path, parameters.mode, parameters.plan
            target = preparation.keep(open_target(kernel, path, kinds=self.kinds, create=mode, leave_absent=plan))
            guard(preparation, target)  # somebody may have made it while the source's lease kept this process waiting
        growth = Growth(kernel, target)
        preparation.callback(growth.take_back)
        require_right_place(target)
        unit = 1 if digest is None else LEAF
        route = _Route(source, target, extent, parameters.source_offset - extent.start, parameters.sparse)
        nodes = nodes_beside_pages(preparation, source.file, extent, max(target.page_size, unit), route.shift)
        _require_copyable(route, growth, keep_size=parameters.keep_size)
        preparation.before_changes(nodes, lambda: _told(kernel, route, growth))
        copier = _Copier(route, growth, preparation.keep(_make_room(kernel, route, growth)), digest)
        align = max(min(target.page_size, ALIGN), unit)
        control = preparation.control(copier.copy, least=MIN_CHUNK, most=MAX_CHUNK, align=align)
        return preparation.plan(nodes, control, copier.finish, tree=_tree(source, target))


def _tree(source: Source, target: Target) -> int:
    """A digest of the size and the time of change of the source; 0 if the task itself changes them.

    A write to tmpfs or hugetlbfs through a mapping does not change the time.
    """
    status = os.fstat(source.file.fd)
    if os.path.samestat(status, os.fstat(target.fd)):
        return 0
    written = b"%d %d" % (source.file.size(), time_of_change(status))
    return int.from_bytes(hashlib.blake2b(written, digest_size=8, usedforsecurity=False).digest(), "little")


def _existing_target(preparation: Preparation[CopyParameters], kinds: Collection[FilesystemType]) -> Target | None:
    """``path``, guarded, if there is such a file; opened before the source, which may be the same file."""
    try:
        target = preparation.keep(open_target(preparation.kernel, preparation.parameters.path, kinds=kinds))
    except TargetError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
    guard(preparation, target)
    return target


def _extent(parameters: CopyParameters, source: Source, *, rest: bool) -> Span:
    """The range of the target. If the source is too short, raises InvalidValue, or TargetError for a ``rest``."""
    if rest and source.file.size() < parameters.source_offset + (parameters.length or 0):
        raise truncated(source.file)
    extent = Span(parameters.offset, parameters.offset + source_length(source, parameters.source_offset, parameters))
    if extent.end > SIZE_MAX:
        raise InvalidValue("offset plus length is past the largest file offset, 2^63 - 1")
    return extent


class _Route(NamedTuple):
    """The copy: to ``extent`` of the target, from ``shift`` bytes further in the source.

    ``sparse``: holes of the source become holes.
    """

    source: Source
    target: Target
    extent: Span
    shift: int
    sparse: bool

    def data(self, extent: Span) -> Iterator[Span]:
        """The runs to copy to a range of the target; the rest are holes. Raises TargetError."""
        file, there = self.source.file, extent.shifted(self.shift)
        if not self.sparse:
            yield extent
            if file.size() < there.end:  # a page that was cut reads as zeros in a mapping
                raise truncated(file)
            return
        runs = self.source.data(there.start, there.end)
        yield from runs if self.shift == 0 else (run.shifted(-self.shift) for run in runs)

    def whole_pages(self, extent: Span, page: int) -> Iterator[Span]:
        """The runs to copy to a range of the target, in whole pages of that size. Raises TargetError."""
        end = 0
        for each in self.data(extent):
            run = each.widened(page)
            run = Span(max(run.start, end), run.end)
            if run.size > 0:
                yield run
                end = run.end


def _require_copyable(route: _Route, growth: Growth, *, keep_size: bool) -> None:
    """Raises InvalidValue, and TargetError (EPERM) for a sealed target."""
    target, extent = route.target, route.extent
    grows = extent.size > 0 and extent.end > growth.old_size
    if grows and keep_size:
        raise InvalidValue(
            f"keep_size=1: the range ends at {extent.end}, and {target.path} has {growth.old_size} bytes"
        )
    require_unsealed(target, SEAL_GROW if grows else 0)
    apart = abs(route.shift) >= extent.size
    if not apart and os.path.samestat(os.fstat(route.source.file.fd), os.fstat(target.fd)):
        raise InvalidValue(f"the range to copy and the range of {target.path} are in one file, and overlap")


def _make_room(kernel: Kernel, route: _Route, growth: Growth) -> Sink:
    """Reserve the missing pages, give the target its size, open the sink."""
    target, extent = route.target, route.extent
    huge = target.filesystem is FilesystemType.HUGETLBFS
    try:
        if huge:
            pages = sum(run.size for run in route.whole_pages(extent, target.page_size)) // target.page_size
            # If a later run cannot be reserved, earlier reservations stay with a file that had its size.
            require_pool(kernel, target, pages, promised=growth.old_size > 0)
            for run in route.whole_pages(extent, target.page_size):
                growth.reserve(run).close()
        else:
            _require_space(kernel, route)
        if extent.size:
            growth.extend(extent.widened(target.page_size).end if huge else extent.end, free_from=extent.start)
        return open_sink(kernel, route.source, target, extent, route.shift)
    except OSError as error:
        raise TargetError.from_os(error, f"allocate {target.path}") from error


def _told(kernel: Kernel, route: _Route, growth: Growth) -> dict[str, object]:
    """The lines of a plan, if there is room; raises as ``prepare``."""
    target, end = route.target, route.extent.end
    huge = target.filesystem is FilesystemType.HUGETLBFS
    try:
        if huge:
            end = route.extent.widened(target.page_size).end
            runs = route.whole_pages(route.extent, target.page_size)
            missing = sum(missing_bytes(target, run) for run in runs)
            require_reservable(kernel, target, missing // target.page_size)
        else:
            _require_space(kernel, route)
        require_file_size(target, end, written=is_written(target))
        return growth.changes(end if route.extent.size else 0)
    except OSError as error:
        raise TargetError.from_os(error, f"allocate {target.path}") from error


def _require_space(kernel: Kernel, route: _Route) -> None:
    """An estimate: only on tmpfs the existing pages of the target are known."""
    target = route.target
    room = mount_room(target)
    if room is None and target.filesystem is FilesystemType.OTHER and not is_served(target.fd):
        raise NotSupported(f"{target.path} is on a filesystem that keeps no data, such as procfs")
    space = SIZE_MAX if room is None else room
    on_tmpfs = target.filesystem is FilesystemType.TMPFS
    enough = min(space, available_memory(kernel)) if on_tmpfs else space + target.allocated()
    if route.extent.size <= enough:  # finding each hole of the source takes time
        return
    data = sum(run.size for run in route.data(route.extent))
    if data <= enough:
        return
    if on_tmpfs:
        require_space(kernel, target, route.extent)
    else:
        raise too_little_space(target, data, space, "must be written")


class _Copied:
    """The digest of the finished chunks. Its positions count from ``base`` of the target."""

    def __init__(self, algorithm: str, base: int) -> None:
        """Raises NotSupported as ``digest_maker``."""
        self._algorithm = algorithm
        self._base = base
        self._maker = digest_maker(algorithm)
        self._lock = threading.Lock()
        self._whole = self._maker()  # guarded by _lock

    def of_chunk(self) -> Parts:
        """An empty digest for one chunk. A chunk begins with a leaf."""
        return Parts(self._maker(), self._base)

    def merge(self, chunk: Parts) -> None:
        """Enter a finished chunk."""
        with self._lock:
            self._whole.merge(chunk.to_bytes())

    def result(self) -> str:
        """The line of the result, after the whole copy."""
        return labelled(self._algorithm, self._whole.value())


class _Copier:
    """The chunk function. ``digest`` is that of the copied data."""

    def __init__(self, route: _Route, growth: Growth, sink: Sink, digest: _Copied | None) -> None:
        self._route = route
        self._growth = growth
        self._sink = sink
        self._lost_writes = LostWrites(route.target)
        self._old_end = Span(0, growth.old_size).widened(route.target.page_size).end
        self._digest = digest

    def copy(self, start: int, end: int) -> None:
        """Copy the data for ``start`` to ``end`` of the target; raises TargetError."""
        mine = None if self._digest is None else self._digest.of_chunk()
        position = start
        with self._growth.room.taking(end - start, lambda: self._missing(start, end)):
            for runs in self._together(Span(start, end)):
                if mine is not None or position < self._old_end:
                    for low, high in gaps(runs, position, runs[-1].end):
                        self._clear(low, high, mine)
                if len(runs) == 1:
                    self._sink.copy(runs[0], mine)
                else:
                    self._sink.copy_near(runs)
                position = runs[-1].end
            self._clear(position, end, mine)
        self._lost_writes.require_none()
        if self._digest is not None and mine is not None:
            self._digest.merge(mine)

    def _together(self, extent: Span) -> Iterator[list[Span]]:
        """The runs to copy; a digest gets one at a time, with the hole before it."""
        runs = self._route.data(extent)
        return near(runs) if self._digest is None else ([run] for run in runs)

    def _missing(self, start: int, end: int) -> int:
        """Bytes of the pages, maybe huge ones, that a copy of the range allocates. Raises TargetError, OSError."""
        return self._sink.missing(self._route.whole_pages(Span(start, end), self._growth.block()))

    def _clear(self, start: int, end: int, digest: Parts | None) -> None:
        """Past the old end of the file only its last page needs clearing.

        On tmpfs, data that somebody has written there through a mapping appears when the file grows.
        """
        old = min(max(start, self._old_end), end)
        if start < old:
            self._sink.clear(Span(start, old), digest)
        if old < end and digest is not None:
            digest.add_zeros(old, end)

    def finish(self, outcome: Outcome) -> str:
        """The digest, if one was asked for and the task finished; ``reserved BYTES`` as of fallocate if it did not.
        Raises TargetError (ENXIO) for a truncated target."""
        self._growth.keep()
        if outcome.remaining():
            left = self._growth.give_back(Span(node.start, node.end) for node in outcome.remaining())
            return f"reserved {left}\n" if left else ""
        extent = self._route.extent
        if extent.size and self._route.target.size() < extent.end:
            raise truncated(self._route.target)
        return "" if self._digest is None else self._digest.result()
