"""``copy``: from any file into a file of memory, where write(2) may be missing, or out of one into any file."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import InvalidValue, NotSupported, OutOfSpace, TargetError
from ktaskfs.host.target import SEAL_GROW, Filesystem, Target, open_target
from ktaskfs.ktask import Control
from ktaskfs.memory.digest import Crc32, digest_maker, labelled
from ktaskfs.memory.growth import Growth
from ktaskfs.memory.page_sink import open_sink
from ktaskfs.memory.room import require_pool, require_space
from ktaskfs.memory.source import DIRECT_BLOCK, Source
from ktaskfs.memory.trouble import require_unsealed, truncated
from ktaskfs.operations.base.nodes import chunk_sizes, make_nodes
from ktaskfs.operations.base.operation import Plan
from ktaskfs.operations.base.parameters import FLAG, LENGTH, OCTAL, PATH, SIZE, choice, parameter
from ktaskfs.operations.ranges._range import RangeOperation, RangeParameters, source_length
from ktaskfs.span import Node, Span
from ktaskfs.units import SIZE_MAX, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ktaskfs.host.kernel import Kernel
    from ktaskfs.memory.sink import Sink

MIN_CHUNK: Final = 16 << 20
MAX_CHUNK: Final = 64 << 20
"""At 4 GiB/s a thread, 15 ms; to or from a disk a fraction of a second."""
ALIGN: Final = 2 << 20
"""Where chunks end: within a gigantic page too, at what a processor maps as one."""


@dataclass(frozen=True, kw_only=True)
class CopyParameters(RangeParameters):
    """A range of ``path``, and what is copied there; without ``length`` all that the source has."""

    length: int | None = parameter(LENGTH, "bytes to copy (default: to the end of source)", default=None)
    source: str = parameter(PATH, "the file to copy from")
    source_offset: int = parameter(SIZE, "first byte to copy", default=0)
    mode: int = parameter(OCTAL, "permissions of a file that is created (the umask applies)", default=0o600)
    keep_size: bool = parameter(FLAG, "do not extend path: a range past its end is refused", default=False)
    sparse: bool = parameter(FLAG, "a hole of the source becomes a hole; 0: zeros in pages", default=True)
    direct: bool = parameter(FLAG, "read past the page cache (O_DIRECT)", default=False)
    digest: str | None = parameter(choice("crc32"), "put the digest of what was copied into result", default=None)


class Copy(RangeOperation[CopyParameters]):
    """What ``path`` has outside of the range stays, as with dd conv=notrunc."""

    name = "copy"
    description = (
        "Copy source into path: into hugetlbfs, which knows no write, and out of it too. Creates path, and extends it. "
        "Huge pages are reserved before the first is touched; holes stay holes."
    )
    parameters = CopyParameters
    no_undo = "what was overwritten with a copy cannot be brought back"

    def resume_refusal(self, parameters: CopyParameters) -> str:
        """A copy can go on, a digest of it cannot."""
        return "the digest of what was done has not been kept" if parameters.digest is not None else ""

    def prepare(self, kernel: Kernel, parameters: CopyParameters, remaining: Sequence[Node] | None) -> Plan:
        """Open both, create, check, reserve, extend.

        Raises OutOfHugePages, OutOfSpace, InvalidValue for ranges past an end that stays or that overlap in one file,
        NotSupported for a source that cannot be read as asked, TargetError.
        """
        if parameters.direct and (parameters.offset % DIRECT_BLOCK or parameters.source_offset % DIRECT_BLOCK):
            raise InvalidValue(f"direct=1: offset and source_offset must be multiples of {format_size(DIRECT_BLOCK)}")
        with contextlib.ExitStack() as stack:
            source = Source(kernel, parameters.source, direct=parameters.direct)
            stack.callback(source.close)
            extent = _extent(parameters, source, rest=remaining is not None)
            if parameters.digest is not None:
                digest_maker(parameters.digest)
            target = open_target(kernel, parameters.path, kinds=frozenset(Filesystem), create=parameters.mode)
            stack.callback(target.close)
            growth = Growth(kernel, target)
            stack.callback(growth.take_back)
            nodes = make_nodes(kernel, extent, parameters.nodes, target.page_size, remaining)
            left = sum(node.size for node in nodes)
            copier = _Copier(kernel, parameters, source, target, growth, extent, left)
            copier.make_room()
            stack.pop_all()
        sizes = chunk_sizes(parameters.chunk, least=MIN_CHUNK, most=MAX_CHUNK, align=min(target.page_size, ALIGN))
        control = Control(copier.copy, min_chunk_size=sizes.least, max_chunk_size=sizes.most, align=sizes.align)
        return Plan(nodes=nodes, control=control, abort=copier.abort, finish=copier.finish)


def _extent(parameters: CopyParameters, source: Source, *, rest: bool) -> Span:
    """The range of the target. Raises InvalidValue, for a ``rest`` TargetError, if the source is too short."""
    if rest and source.file.size() < parameters.source_offset + (parameters.length or 0):
        raise truncated(source.file)
    extent = Span(parameters.offset, parameters.offset + source_length(source, parameters.source_offset, parameters))
    if extent.end > SIZE_MAX:
        raise InvalidValue("offset plus length is past the largest file offset, 2^63 - 1")
    return extent


class _Copier:
    """The chunk function, what it holds open, and the digest of the chunks that are finished."""

    def __init__(
        self,
        kernel: Kernel,
        parameters: CopyParameters,
        source: Source,
        target: Target,
        growth: Growth,
        extent: Span,
        left: int,
    ) -> None:
        """Raises InvalidValue, and TargetError (EPERM) for a sealed target; changes nothing."""
        self._kernel = kernel
        self._parameters = parameters
        self._source = source
        self._target = target
        self._extent = extent
        self._shift = parameters.source_offset - extent.start
        self._growth = growth
        self._sink: Sink | None = None
        self._lock = threading.Lock()  # guards both of these
        self._digest = Crc32() if parameters.digest else None
        self._left = left  # bytes that are still to be copied
        grows = extent.end > growth.old_size
        if grows and parameters.keep_size:
            raise InvalidValue(
                f"keep_size=1: the range ends at {extent.end}, and {target.path} has {growth.old_size} bytes"
            )
        require_unsealed(target, SEAL_GROW if grows else 0)
        apart = abs(self._shift) >= extent.size
        if not apart and os.path.samestat(os.fstat(source.file.fd), os.fstat(target.fd)):
            raise InvalidValue(f"the range to copy and the range of {target.path} are in one file, and overlap")

    def make_room(self) -> None:
        """Reserve what is missing, give the target its size, open the sink."""
        target, extent = self._target, self._extent
        huge = target.filesystem is Filesystem.HUGETLBFS
        end = extent.widened(target.page_size).end if huge else extent.end
        try:
            if huge:
                pages = sum(run.size for run in self._whole_pages()) // target.page_size
                # If there is too little for a later run, what is reserved for one stays with a file that had its size.
                require_pool(self._kernel, target, pages, promised=self._growth.old_size > 0)
                for run in self._whole_pages():
                    self._growth.reserve(run).close()
            else:
                self._require_space()
            self._growth.extend(end, free_from=extent.start)
            self._sink = open_sink(self._source, target, extent, self._shift)
        except OSError as error:
            raise TargetError.from_os(error, f"allocate {target.path}") from error

    def _whole_pages(self) -> Iterator[Span]:
        """What is to be copied, as runs of whole pages of the target."""
        end = 0
        for low, high in self._data(self._extent.start, self._extent.end):
            run = Span(low, high).widened(self._target.page_size)
            run = Span(max(run.start, end), run.end)
            if run.size > 0:
                yield run
                end = run.end

    def _data(self, start: int, end: int) -> Iterator[Span]:
        """What is to be copied of a range of the target; the rest are holes."""
        if not self._parameters.sparse:
            yield Span(start, end)
            if self._source.file.size() < end + self._shift:  # a page that was cut reads as zeros in a mapping
                raise truncated(self._source.file)
            return
        for low, high in self._source.data(start + self._shift, end + self._shift):
            yield Span(low - self._shift, high - self._shift)

    def _require_space(self) -> None:
        """As good as it can be told: what the target has in the range already is only looked for in tmpfs."""
        data = sum(high - low for low, high in self._data(self._extent.start, self._extent.end))
        mount = os.fstatvfs(self._target.fd)
        space = mount.f_bavail * mount.f_frsize
        if self._target.filesystem is Filesystem.OTHER and not mount.f_blocks:
            raise NotSupported(f"{self._target.path} is on a filesystem that keeps no data, such as procfs")
        if self._target.filesystem is Filesystem.TMPFS:
            if data > min(space if mount.f_blocks else SIZE_MAX, self._kernel.available_memory()):
                require_space(self._kernel, self._target, self._extent)
        elif data > space + self._target.allocated():
            raise OutOfSpace(
                f"{self._target.path}: {data} bytes are to be written, and its filesystem has {space} left"
            )

    def copy(self, start: int, end: int) -> None:
        """Copy what belongs at ``start`` to ``end`` of the target; raises TargetError."""
        assert self._sink is not None
        mine = Crc32() if self._digest is not None else None
        position = start
        for low, high in self._data(start, end):
            self._clear(self._sink, position, low, mine)
            self._sink.copy(low, high, mine)
            position = high
        self._clear(self._sink, position, end, mine)
        with self._lock:
            self._left -= end - start
            if self._digest is not None and mine is not None:
                self._digest.merge(mine)

    def _clear(self, sink: Sink, start: int, end: int, digest: Crc32 | None) -> None:
        """Past the old end of the file there is nothing yet that would have to make room for a hole.

        But in its last page: what somebody has put there through a mapping, tmpfs shows once the file is longer.
        """
        page = self._target.page_size
        old = min(max(start, -(-self._growth.old_size // page) * page), end)
        if start < old:
            sink.clear(start, old, digest)
        if old < end and digest is not None:
            digest.add_zeros(old, end)

    def abort(self) -> None:
        """Take back what ``make_room`` did, and close everything."""
        self._growth.take_back()
        self._close()

    def finish(self) -> str:
        """Close everything; the digest, if one was asked for and the task came to its end.

        Raises TargetError (ENXIO) for a target that was truncated meanwhile.
        """
        try:
            if self._left:
                return ""
            if self._target.size() < self._extent.end:
                raise truncated(self._target)
        finally:
            self._close()
        return "" if self._digest is None else labelled("crc32", self._digest.value())

    def _close(self) -> None:
        if self._sink is not None:
            self._sink.close()
        self._source.close()
        self._target.close()
