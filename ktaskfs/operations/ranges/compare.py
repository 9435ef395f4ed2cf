"""``compare``: the first difference of two files, and the number of differing bytes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.host import syscalls
from ktaskfs.host.buffer import Buffer
from ktaskfs.host.presence import union
from ktaskfs.host.target import MEMORY, FilesystemType
from ktaskfs.memory.hand_code import TouchedFile, open_hands
from ktaskfs.memory.source import Source, require_source_range
from ktaskfs.operations.base.parameters import PATH, SIZE, parameter
from ktaskfs.operations.ranges._range import (
    FileParameters,
    RangeOperation,
    nodes_beside_pages,
    open_range_source,
    require_start,
)
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ktaskfs.host.hands import Hands
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation

MIN_CHUNK: Final = 16 << 20
MAX_CHUNK: Final = 64 << 20
"""At 4 GiB/s a thread 15 ms; 100 ms where every byte differs."""
PIECE: Final = 512 << 10
"""Bytes read of each file before a comparison. With 256 KiB, which fits the own cache of a CPU of an EPYC twice, two
threads took 15 % more CPU time, for the interpreter and its lock."""
GRAIN: Final = 4096
"""Bytes of a piece that is counted byte by byte if it differs."""


class CompareParameters(FileParameters):
    """A range of ``path``, and the file to compare it with; without ``length`` up to the end of the longer file.

    The size of a file of hugetlbfs is whole pages, so a copy there ends in zeros that its source lacks.
    """

    source: str = parameter(PATH, "the file to compare with")
    source_offset: int = parameter(SIZE, "first byte of source to compare", default=0)


class Compare(RangeOperation[CompareParameters]):
    """Both files are only read, and common holes are skipped. A difference is a result, not a failure."""

    name = "compare"
    target = "two files"
    description = (
        "Compare a range of path with a range of source, of any files. The result is 'equal', or the first differing "
        "byte of path and the number of differing bytes; the task is done in both cases. Without length, zeros that "
        "fill the last page of a longer hugetlbfs file do not count as a difference."
    )
    parameters = CompareParameters
    no_undo = "a comparison changes nothing"
    no_resume = "the result of the finished part is lost"

    def prepare(self, preparation: Preparation[CompareParameters]) -> Plan:
        """Open both for reading.

        Raises InvalidValue for a range past the end of one of them, TargetError.
        """
        parameters = preparation.parameters
        file = preparation.keep(open_range_source(preparation))
        source = preparation.keep(Source(preparation.kernel, parameters.source))
        comparison = _comparison(parameters, file, source)
        if file.file.filesystem in MEMORY:
            nodes = nodes_beside_pages(preparation, file.file, comparison.extent, PIECE)
        else:
            nodes = nodes_beside_pages(preparation, source.file, comparison.extent, PIECE, comparison.shift)
        files = [TouchedFile(each.file, write=False) for each in (file, source)]
        touch = _HandCode(files, comparison.shift).compare
        hands = preparation.hands(nodes, lambda kernel, size: open_hands(kernel, size, touch, files))
        comparer = _Comparer(file, source, comparison, hands)
        control = preparation.control(comparer.compare, least=MIN_CHUNK, most=MAX_CHUNK, align=PIECE)
        return preparation.plan(nodes, control, comparer.finish)


class _Comparison(NamedTuple):
    """The comparison: ``extent`` of the file with the range ``shift`` bytes further in the source.

    ``ends``: the ends of file and source, or of the extent if that is first; all are positions in the file. After the
    extent the longer one has ``lacking`` more bytes, which all differ.
    """

    extent: Span
    shift: int
    ends: tuple[int, int]
    lacking: int


def _comparison(parameters: CompareParameters, file: Source, source: Source) -> _Comparison:
    offset, source_offset = parameters.offset, parameters.source_offset
    shift = source_offset - offset
    if parameters.length is not None:
        extent = Span(offset, offset + parameters.length)
        require_source_range(file, extent)
        require_source_range(source, extent.shifted(shift))
        return _Comparison(extent, shift, (extent.end, extent.end), 0)
    left, right = file.file.size() - offset, source.file.size() - source_offset
    require_start(file.file.path, offset, offset + left)
    require_start(source.file.path, source_offset, source_offset + right)
    shared, whole = offset + min(left, right), offset + max(left, right)
    longer = (file if left > right else source).file
    if longer.filesystem is FilesystemType.HUGETLBFS and whole - shared < longer.page_size:
        return _Comparison(Span(offset, whole), shift, (offset + left, offset + right), 0)
    return _Comparison(Span(offset, shared), shift, (shared, shared), whole - shared)


class _Side:
    """One of the files, in positions of ``path``; past ``end`` it reads as zeros."""

    def __init__(self, source: Source, shift: int, end: int) -> None:
        self._source = source
        self._shift = shift
        self._end = end

    def data(self, start: int, end: int) -> Iterator[Span]:
        """The runs that may have non-zero bytes; raises TargetError."""
        stop = min(end, self._end)
        if start < stop:
            for run in self._source.data(start + self._shift, stop + self._shift):
                yield run.shifted(-self._shift)

    def read(self, view: memoryview, position: int) -> None:
        """Fill ``view`` from ``position`` on; raises TargetError."""
        there = min(max(self._end - position, 0), len(view))
        self._source.read(view[:there], position + self._shift)
        view[there:] = bytes(len(view) - there)


class _Comparer:
    """The chunk function, and the findings in finished chunks."""

    def __init__(self, file: Source, source: Source, comparison: _Comparison, hands: Hands | None) -> None:
        self._hands = hands
        self._file = _Side(file, 0, comparison.ends[0])
        self._source = _Side(source, comparison.shift, comparison.ends[1])
        self._buffer = Buffer(2 * PIECE)
        self._lock = threading.Lock()  # guards everything below
        self._differing = comparison.lacking
        self._first = comparison.extent.end if comparison.lacking else None

    def compare(self, start: int, end: int) -> None:
        """Compare the bytes from ``start`` to ``end``; raises TargetError."""
        if self._hands is not None and self._hands.do(start, end) is not None:
            return
        differing, first = 0, None
        for low, high in self._data(start, end):
            for position in range(low, high, PIECE):
                found = self._compare_piece(position, min(PIECE, high - position))
                if found:
                    differing += found[1]
                    first = found[0] if first is None else first
        with self._lock:
            self._differing += differing
            if first is not None and (self._first is None or first < self._first):
                self._first = first

    def _data(self, start: int, end: int) -> Iterator[Span]:
        """The runs where one of the files may have non-zero bytes."""
        return union(self._file.data(start, end), self._source.data(start, end))

    def _compare_piece(self, position: int, size: int) -> tuple[int, int] | None:
        """The first position that differs and how many do; None if it is the same in both."""
        buffer = self._buffer
        mine, others = buffer.view[:size], buffer.view[PIECE : PIECE + size]
        self._file.read(mine, position)
        self._source.read(others, position)
        if syscalls.same_bytes(buffer.address, buffer.address + PIECE, size):
            return None
        differing, first = 0, None
        for low in range(0, size, GRAIN):
            left, right = bytes(mine[low : low + GRAIN]), bytes(others[low : low + GRAIN])
            if left != right:  # an exclusive or of long numbers counts bytes at half a GiB/s
                different = (int.from_bytes(left) ^ int.from_bytes(right)).to_bytes(len(left))
                differing += len(left) - different.count(0)
                if first is None:
                    first = position + low + len(left) - len(different.lstrip(b"\0"))
        assert first is not None
        return first, differing

    def finish(self, outcome: Outcome) -> str:
        """The findings, or nothing if the task did not finish."""
        if outcome.remaining():
            return ""
        return "equal\n" if self._first is None else f"first {self._first}\ndiffering {self._differing}\n"


class _HandCode:
    """The chunk function of a hand, for chunks that both files have and that are the same."""

    def __init__(self, files: Sequence[TouchedFile], shift: int) -> None:
        self._file, self._source = files
        self._shift = shift

    def compare(self, start: int, end: int) -> bytes:
        """Raises OSError, and ValueError if any byte differs."""
        with (
            self._file.mapped(start, end) as mine,
            self._source.mapped(start + self._shift, end + self._shift) as others,
        ):
            if not syscalls.same_bytes(mine, others, end - start):
                raise ValueError
        return b""
