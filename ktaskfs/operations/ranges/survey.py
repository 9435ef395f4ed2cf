"""``survey``: the pages of a file of memory, and their NUMA nodes. No page is allocated."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import TargetError
from ktaskfs.host.presence import HOLE
from ktaskfs.host.target import MEMORY, FilesystemType, Target, open_target
from ktaskfs.memory.file_pages import WINDOW, FilePages
from ktaskfs.memory.guarded_pages import require_guard
from ktaskfs.memory.run_table import RunTable
from ktaskfs.operations.ranges._many import open_many
from ktaskfs.operations.ranges._range import PageRangeOperation, RangeParameters, is_many
from ktaskfs.result import with_table
from ktaskfs.span import Node, Span
from ktaskfs.units import escaped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation

MIN_CHUNK: Final = 4 * WINDOW
MAX_CHUNK: Final = {FilesystemType.HUGETLBFS: 64 * WINDOW, FilesystemType.TMPFS: 256 * WINDOW}
"""Pages. A missing huge page takes about 1 µs to find; 1 GiB of tmpfs takes 0.1 s, a hole next to nothing."""


class SurveyParameters(RangeParameters):
    """A range, by default to the end of the file; pages partly in it count."""


class Survey(PageRangeOperation[SurveyParameters]):
    """Pages are mapped under a HoleGuard and asked for their node (move_pages(2) without targets).

    Of tmpfs, pages that were allocated and never written count as holes, and pages that were swapped out are read back
    in.
    """

    name = "survey"
    target = "a file of memory"
    description = (
        "Find which pages of the range exist and on which NUMA node, without allocating any. The result has the "
        "counts, then a row for each run of equal pages. path may be a directory on hugetlbfs or a quoted pattern, "
        "for all files of memory there; the result then has a row for each file."
    )
    parameters = SurveyParameters
    kinds = MEMORY
    takes_many = True
    no_undo = "a survey changes nothing"
    no_resume = "the earlier part of the table is lost"

    def prepare(self, preparation: Preparation[SurveyParameters]) -> Plan:
        """Open; raises InvalidValue past the end of the file, and NotSupported without userfaultfd."""
        path = preparation.parameters.path
        if is_many(path):
            return _prepare_many(preparation)
        target = preparation.keep(open_target(preparation.kernel, path, kinds=self.kinds, write=False))
        nodes = self.nodes(preparation, target)
        surveyor = _Surveyor(target, preparation.keep(FilePages(target, private=True)))
        control = preparation.control(surveyor.survey, least=MIN_CHUNK, most=MAX_CHUNK[target.filesystem])
        return preparation.plan(nodes, control, surveyor.finish)


def _prepare_many(preparation: Preparation[SurveyParameters]) -> Plan:
    """Prepare for many whole files: the result has a row for each. Raises the errors for one file, of the first."""
    files = open_many(preparation, lambda target: require_guard(target).close(), write=False)
    page, lock = files.page_size, threading.Lock()
    found = [Counter[int]() for _ in files.files]

    def survey(start: int, end: int) -> None:
        for index, target, piece in files.pieces(start * page, end * page):
            with contextlib.closing(FilePages(target, private=True)) as pages:
                surveyor = _Surveyor(target, pages)
                surveyor.survey(piece.start // page, piece.end // page)
            with lock:
                found[index] += surveyor.pages

    def finish(outcome: Outcome) -> str:
        pages = sum(found, Counter[int]())
        nids = sorted({*pages} - {HOLE})
        counts = files.counts | {"pages": pages.total(), "present": pages.total() - pages[HOLE], "holes": pages[HOLE]}
        counts |= {f"node{nid}": pages[nid] for nid in nids}
        header = " ".join(["pages", "present", "holes", *(f"node{nid}" for nid in nids), "path"])
        numbers = ((of.total(), of.total() - of[HOLE], of[HOLE], *(of[nid] for nid in nids)) for of in found)
        each = zip(files.files, numbers, strict=True)
        return with_table(counts, header, (f"{' '.join(map(str, row))} {escaped(file.path)}" for file, row in each))

    nodes = preparation.nodes(Span(0, files.extent.end // page), 1)
    control = preparation.control(survey, least=MIN_CHUNK, most=MAX_CHUNK[FilesystemType.HUGETLBFS])
    return preparation.plan(nodes, control, finish)


class _Surveyor:
    """The chunk function, and its findings."""

    def __init__(self, target: Target, pages: FilePages) -> None:
        self._target = target
        self._pages = pages
        self._page = target.page_size
        self._allocated = target.allocated()
        self._table = RunTable()

    def survey(self, start: int, end: int) -> None:
        """Enter the pages from ``start`` to ``end``; raises TargetError."""
        try:
            for runs in self._runs(start, end):
                self._table.add(runs)
        except OSError as error:
            raise TargetError.from_os(error, f"examine {self._target.path}") from error

    @property
    def pages(self) -> Mapping[int, int]:
        """The number of pages on each node."""
        return self._table.pages

    def _runs(self, start: int, end: int) -> Iterator[Sequence[Node]]:
        """The pages from ``start`` to ``end``, window by window."""
        self._pages.require(end)
        allocated = self._target.allocated()
        if self._table.present * self._page >= allocated == self._allocated:
            yield [Node(start, end - start, HOLE)]  # every page of the file has been found already
            return
        position = start
        for window in self._pages.windows(start, end):
            if position < window.start:
                yield [Node(position, window.start - position, HOLE)]
            yield self._look_at(window)
            position = window.end
        if position < end:
            yield [Node(position, end - position, HOLE)]

    def _look_at(self, window: Span) -> list[Node]:
        with self._pages.mapped(window) as (_, nodes):
            pass
        runs, position = [], window.start
        for node, pages in itertools.groupby(nodes):
            count = sum(1 for _ in pages)
            runs.append(Node(position, count, node))
            position += count
        return runs

    def finish(self, outcome: Outcome) -> str:
        """The result: counts, then the table, offsets and lengths in bytes."""
        allocated = self._target.allocated() // self._page
        table = self._table
        counts = {"page_size": self._page, "pages": table.seen, "present": table.present}
        counts |= {"holes": table.pages[HOLE], "allocated": allocated}
        counts |= {f"node{node}": table.pages[node] for node in sorted(table.pages) if node != HOLE}
        counts |= {"rows": table.rows}
        rows = [
            f"{run.start * self._page} {run.size * self._page} {run.size} {'hole' if run.nid == HOLE else run.nid}"
            for run in table
        ]
        return with_table(counts, "offset length pages node", rows, more=table.rows - len(rows))
