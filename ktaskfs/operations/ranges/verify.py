"""``verify``: check that a file of memory has the pattern that ``fill`` wrote."""

from __future__ import annotations

import bisect
import contextlib
import os
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import Finding, TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.buffer import Block, Buffer
from ktaskfs.host.presence import data_extents, gaps, missing_pages
from ktaskfs.host.target import MEMORY, FilesystemType, Target
from ktaskfs.memory.guarded_pages import GuardedPages, guarded_pages
from ktaskfs.memory.hand_code import TouchedFile, is_repeated, open_hands
from ktaskfs.memory.target_errors import truncated
from ktaskfs.operations.ranges._many import open_many
from ktaskfs.operations.ranges._pattern import PatternParameters, repeated
from ktaskfs.operations.ranges._range import (
    RangeOperation,
    nodes_beside_pages,
    open_range_target,
    resolve_extent,
    stands_for_many,
)
from ktaskfs.result import with_table
from ktaskfs.span import Span
from ktaskfs.units import escaped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ktaskfs.host.hands import Hands
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation

MIN_CHUNK: Final = 16 << 20
MAX_CHUNK: Final = 64 << 20
"""Reading and comparing runs at some 5 GiB/s a thread: 64 MiB take 13 ms."""
GRAIN: Final = 4096
"""Bytes of one row of the result."""
MAX_ROWS: Final = 1000
SHOWN: Final = 8
"""Bytes of expected and found data in a row."""


class Verify(RangeOperation[PatternParameters]):
    """A hand compares in place. Otherwise a thread reads into its own buffer (pread(2) fills no hole).

    Holes are skipped and counted; on tmpfs, pages that were allocated and never written count as holes.
    """

    name = "verify"
    description = (
        "Compare existing pages with a repeated pattern, as fill writes it. The task fails if a byte differs; "
        "the result has the number of differing bytes and the first positions. path may be a directory on hugetlbfs or "
        "a quoted pattern, for all files of memory there."
    )
    parameters = PatternParameters
    kinds = MEMORY
    takes_many = takes_many_mapped = True
    no_undo = "a verification changes nothing"
    no_resume = "the earlier findings are lost"

    def prepare(self, preparation: Preparation[PatternParameters]) -> Plan:
        """Open and map; raises InvalidValue past the end of the file, NotSupported where holes hide."""
        parameters = preparation.parameters
        block = repeated(parameters.pattern)
        if stands_for_many(preparation):
            return _prepare_many(preparation, block)
        target = preparation.keep(open_range_target(preparation, kinds=self.kinds, write=False))
        extent = resolve_extent(parameters, target.size(), may_grow=False)
        nodes = nodes_beside_pages(preparation, target, extent, target.page_size)
        pages = preparation.keep(_Pages(target, extent))
        file = TouchedFile(target, write=False)
        touch = _HandCode(file, block).verify
        hands = preparation.hands(nodes, lambda kernel, size: open_hands(kernel, size, touch, [file]))
        findings = _Findings()
        verifier = _Verifier(target, pages.guarded, block, findings, hands)

        def finish(outcome: Outcome) -> str:
            return findings.result({}, lambda row: target.path, lambda row: row.offset)

        align = min(target.page_size, MIN_CHUNK)
        control = preparation.control(verifier.verify, least=MIN_CHUNK, most=MAX_CHUNK, align=align)
        return preparation.plan(nodes, control, finish)


def _prepare_many(preparation: Preparation[PatternParameters], block: bytes) -> Plan:
    """A plan for many whole files. Each row has its file. Raises as ``prepare``, for the first refused file."""
    files = open_many(preparation, lambda target: _Pages(target, Span(0, target.size())).close(), write=False)
    findings = _Findings()

    def verify(start: int, end: int) -> None:
        for index, target, piece in files.whole_pieces(start, end):
            with contextlib.closing(_Pages(target, piece)) as pages:
                verifier = _Verifier(target, pages.guarded, block, findings, file=index)
                verifier.verify(piece.start, piece.end)

    def finish(outcome: Outcome) -> str:
        def name(row: _Difference) -> str:
            return files.files[row.file].path

        return findings.result(files.counts, name, lambda row: files.line.begin(row.file) + row.offset)

    nodes = preparation.nodes(files.extent, files.page_size)
    align = min(files.page_size, MIN_CHUNK)
    control = preparation.control(verify, least=MIN_CHUNK, most=MAX_CHUNK, align=align)
    return preparation.plan(nodes, control, finish)


class _Pages:
    """A mapping of a range of hugetlbfs, which shows the existing pages. tmpfs reports its data without one."""

    def __init__(self, target: Target, extent: Span) -> None:
        """Raises NotSupported where holes hide, and TargetError."""
        self.guarded = None
        if target.filesystem is not FilesystemType.TMPFS:
            self.guarded = guarded_pages(target, extent, private=True)

    def close(self) -> None:
        """Unmap."""
        if self.guarded is not None:
            self.guarded.close()


class _Difference(NamedTuple):
    """The first differing byte of a grain, the number of differing bytes, and the bytes from there on. ``file`` is
    the number of its file."""

    file: int
    offset: int
    differing: int
    expected: bytes
    found: bytes


class _Findings:
    """The differences: all are counted, the first rows are kept. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below
        self.compared = 0
        self.holes = 0
        self.differing = 0
        self.grains = 0
        self.rows: list[_Difference] = []

    def count(self, compared: int, holes: int) -> None:
        with self._lock:
            self.compared += compared
            self.holes += holes

    def add(self, difference: _Difference) -> None:
        with self._lock:
            self.differing += difference.differing
            self.grains += 1
            bisect.insort(self.rows, difference)
            del self.rows[MAX_ROWS:]

    def result(
        self, many: Mapping[str, int], name: Callable[[_Difference], str], position: Callable[[_Difference], int]
    ) -> str:
        """The result. Raises Finding if any byte differs.

        With counts of ``many`` files, each row has the ``name`` of its file. ``position`` returns the position of a row
        in the task.
        """
        text = self._text(many, name)
        if self.differing:
            first = self.rows[0]
            where = f"{self.differing} bytes differ from the pattern, the first at {first.offset}"
            raise Finding(f"{name(first)}: {where}", position=position(first), result=text)
        return text

    def _text(self, many: Mapping[str, int], name: Callable[[_Difference], str]) -> str:
        """The counts, then the table."""
        counts = {"compared": self.compared, "holes": self.holes, "differing": self.differing, "rows": self.grains}
        rows = (
            f"{row.offset} {row.differing} {row.expected.hex()} {row.found.hex()}"
            + (f" {escaped(name(row))}" if many else "")
            for row in self.rows
        )
        header = f"offset differing expected found{' path' if many else ''}"
        return with_table({**many, **counts}, header, rows, more=self.grains - len(self.rows))


class _Verifier:
    """The chunk function, and its findings."""

    def __init__(
        self,
        target: Target,
        pages: GuardedPages | None,
        block: bytes,
        findings: _Findings,
        hands: Hands | None = None,
        file: int = 0,
    ) -> None:
        self._target = target
        self._file = file
        self._pages = pages
        self._hands = hands
        self._block = block
        self._expected = Block(block)
        self._buffer = Buffer(len(block))
        self._findings = findings

    def verify(self, start: int, end: int) -> None:
        """Compare the bytes from ``start`` to ``end`` that exist; raises TargetError."""
        self._require(end)
        if self._hands is not None and self._hands.do(start, end) is not None:
            self._findings.count(end - start, 0)
            return
        compared = 0
        try:
            for low, high in self._present(start, end):
                self._compare(low, high)
                compared += high - low
        except OSError as error:
            raise TargetError.from_os(error, f"read {self._target.path}") from error
        self._require(end)  # what was cut off meanwhile looks like a hole
        self._findings.count(compared, end - start - compared)

    def _require(self, end: int) -> None:
        if self._target.size() < end:
            raise truncated(self._target)

    def _present(self, start: int, end: int) -> Iterator[Span]:
        if self._target.allocated() == 0:
            return
        if self._pages is None:
            yield from data_extents(self._target.fd, start, end)
            return
        if self._pages.guard is None:
            yield Span(start, end)
            return
        page = self._target.page_size
        whole = Span(start, end).widened(page)
        yield from gaps(missing_pages(self._pages.pages, whole.start, whole.end, page), start, end)

    def _compare(self, start: int, end: int) -> None:
        size, buffer, address = len(self._block), self._buffer.view, self._buffer.address
        position = start
        while position < end:
            at = position % size
            length = os.preadv(self._target.fd, [buffer[: min(end - position, size - at)]], position)
            if length == 0:
                raise truncated(self._target)
            if not syscalls.same_bytes(address, self._expected.address + at, length):
                self._look_closely(position, bytes(buffer[:length]), at)
            position += length

    def _look_closely(self, position: int, found: bytes, at: int) -> None:
        """Enter the grains that differ. An exclusive or of long numbers counts bytes at half a GiB/s."""
        for low in range(0, len(found), GRAIN):
            mine = found[low : low + GRAIN]
            true = self._block[at + low : at + low + len(mine)]
            if mine == true:
                continue
            different = (int.from_bytes(mine) ^ int.from_bytes(true)).to_bytes(len(mine))
            first = len(mine) - len(different.lstrip(b"\0"))
            row = _Difference(
                self._file,
                position + low + first,
                len(mine) - different.count(0),
                true[first : first + SHOWN],
                mine[first : first + SHOWN],
            )
            self._findings.add(row)


class _HandCode:
    """The chunk function of a hand, for chunks that have no hole and no difference."""

    def __init__(self, file: TouchedFile, block: bytes) -> None:
        self._file = file
        self._block = Block(block)

    def verify(self, start: int, end: int) -> bytes:
        """Raises OSError, and ValueError if any byte differs."""
        with self._file.mapped(start, end) as address:
            if not is_repeated(address, end - start, self._block, start % self._block.size):
                raise ValueError
        return b""
