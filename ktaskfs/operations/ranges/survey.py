"""``survey``: which pages a file of memory has, and on which NUMA node each lies. No page is allocated."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import TargetError
from ktaskfs.host.mapping import HoleGuard, Mapping
from ktaskfs.host.presence import HOLE, data_extents, node_of_pages
from ktaskfs.host.target import MEMORY, Filesystem, Target, open_target
from ktaskfs.ktask import Control
from ktaskfs.memory.guarded import require_guard
from ktaskfs.memory.page_runs import RESULT_MAX, RunTable
from ktaskfs.memory.trouble import truncated
from ktaskfs.operations.base.nodes import chunk_sizes, make_nodes
from ktaskfs.operations.base.operation import Plan
from ktaskfs.operations.ranges._range import PageRangeOperation, RangeParameters, resolve_extent
from ktaskfs.span import Node, Span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ktaskfs.host.kernel import Kernel

WINDOW: Final = 1024
"""Pages looked at in one go; 4 MiB of tmpfs, which count as the worker's resident memory while they are mapped."""
MIN_CHUNK: Final = 4 * WINDOW
MAX_CHUNK: Final = {Filesystem.HUGETLBFS: 64 * WINDOW, Filesystem.TMPFS: 256 * WINDOW}
"""Pages. A missing huge page takes about 1 µs to find; 1 GiB of tmpfs takes 0.1 s, a hole next to nothing."""


@dataclass(frozen=True, kw_only=True)
class SurveyParameters(RangeParameters):
    """A range, by default to the end of the file; pages that lie in it partly are looked at."""


class Survey(PageRangeOperation[SurveyParameters]):
    """Pages are mapped under a HoleGuard and asked for their node (move_pages(2) without targets).

    Of tmpfs, pages that were allocated and never written count as holes, and pages that were swapped out are read back
    in.
    """

    name = "survey"
    description = (
        "Find which pages of the range exist and on which NUMA node they lie, without allocating any. "
        "The result has the counts, then a row for each run of pages alike."
    )
    parameters = SurveyParameters
    no_undo = "a survey changes nothing that could be taken back"
    no_resume = "the table of what was looked at has not been kept"

    def prepare(self, kernel: Kernel, parameters: SurveyParameters, remaining: Sequence[Node] | None) -> Plan:
        """Open; raises InvalidValue past the end of the file, and NotSupported without userfaultfd."""
        target = open_target(kernel, parameters.path, kinds=MEMORY, write=False)
        try:
            extent = resolve_extent(parameters, target.size(), may_grow=False).widened(target.page_size)
            pages = Span(extent.start // target.page_size, extent.end // target.page_size)
            nodes = make_nodes(kernel, pages, parameters.nodes, 1, remaining)
            surveyor = _Surveyor(target, require_guard(target))
        except BaseException:
            target.close()
            raise
        sizes = chunk_sizes(parameters.chunk, least=MIN_CHUNK, most=MAX_CHUNK[target.filesystem], align=1)
        control = Control(surveyor.survey, min_chunk_size=sizes.least, max_chunk_size=sizes.most)
        return Plan(nodes=nodes, control=control, abort=surveyor.close, finish=surveyor.finish)


class _Surveyor:
    """The chunk function, what it holds open, and what it has found."""

    def __init__(self, target: Target, guard: HoleGuard) -> None:
        self._target = target
        self._guard = guard
        self._page = target.page_size
        self._allocated = target.allocated()
        self._table = RunTable()

    def survey(self, start: int, end: int) -> None:
        """Enter the pages from ``start`` to ``end``; raises TargetError."""
        if self._target.size() <= (end - 1) * self._page:
            raise truncated(self._target)
        try:
            for runs in self._runs(start, end):
                self._table.add(runs)
        except OSError as error:
            raise TargetError.from_os(error, f"look at {self._target.path}") from error

    def _runs(self, start: int, end: int) -> Iterator[Sequence[Node]]:
        """What there is from ``start`` to ``end``, window by window."""
        allocated = self._target.allocated()
        if self._table.present * self._page >= allocated == self._allocated:
            yield [Node(start, end - start, HOLE)]  # the file has no page that was not found already
            return
        position = start
        for low, high in self._candidates(start, end):
            if position < low:
                yield [Node(position, low - position, HOLE)]
            for window in Span(low, high).windows(WINDOW):
                yield self._look_at(window.start, window.end)
            position = high
        if position < end:
            yield [Node(position, end - position, HOLE)]

    def _candidates(self, start: int, end: int) -> Iterator[Span]:
        """The ranges in which there may be pages: hugetlbfs does not tell."""
        if self._target.filesystem is Filesystem.HUGETLBFS:
            yield Span(start, end)
            return
        for data, hole in data_extents(self._target.fd, start * self._page, end * self._page):
            yield Span(data // self._page, -(-hole // self._page))

    def _look_at(self, start: int, end: int) -> list[Node]:
        low, high = start * self._page, end * self._page
        with Mapping(self._target.fd, low, high - low, reserve=False, private=True) as mapping:
            self._guard.guard(mapping)
            nodes = node_of_pages(mapping, low, high, self._page)
        runs, position = [], start
        for node, pages in itertools.groupby(nodes):
            count = sum(1 for _ in pages)
            runs.append(Node(position, count, node))
            position += count
        return runs

    def finish(self) -> str:
        """Close everything; the result: counts, then the table, offsets and lengths in bytes."""
        allocated = self._target.allocated() // self._page
        self.close()
        table = self._table
        counts = {"page_size": self._page, "pages": table.seen, "present": table.present}
        counts |= {"holes": table.pages[HOLE], "allocated": allocated}
        counts |= {f"node{node}": table.pages[node] for node in sorted(table.pages) if node != HOLE}
        rows = ["offset length pages node\n"]
        room = RESULT_MAX - 1024
        for run in table:
            where = "hole" if run.nid == HOLE else run.nid
            row = f"{run.start * self._page} {run.size * self._page} {run.size} {where}\n"
            room -= len(row)
            if room < 0:
                break
            rows.append(row)
        counts |= {"rows": table.rows, "left_out": table.rows - len(rows) + 1}
        return "".join([*(f"{key} {value}\n" for key, value in counts.items()), *rows])

    def close(self) -> None:
        """Close everything; the file is as it was."""
        self._guard.close()
        self._target.close()
