"""``survey`` of a process: its pages by mapping and NUMA node."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.host import numa_pages
from ktaskfs.host.page_table import FILE, HUGE, PRESENT
from ktaskfs.host.topology import read_nodes
from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.processes._mappings import MappedPages, ProcessParameters, open_pages
from ktaskfs.result import with_table
from ktaskfs.units import PAGES, escaped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ktaskfs.host.page_table import Run
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation

MIN_CHUNK: Final = 4 << 10
MAX_CHUNK: Final = 16 << 10
"""Pages. An mmap(2) of the process waits for the scan of one chunk of 64 MiB, some milliseconds."""
COUNTS: Final = ("present", "huge", "swapped", "file", "anonymous")


class SurveyParameters(ProcessParameters):
    """A process, and which of its mappings."""


class Survey(Operation[SurveyParameters]):
    """PAGEMAP_SCAN in chunks, or /proc/PID/pagemap before Linux 6.7, which does not show huge pages.

    move_pages(2) reports the node of each page, on a machine with several.
    """

    name = "survey"
    target = "a process"
    description = (
        "Count a process's pages without stopping it: present, in huge mappings, swapped out, of files or shared "
        "memory, anonymous, and on each NUMA node. The result has the sums, then a row for each mapping. The caller "
        "needs the right to look at the process (ptrace(2))."
    )
    units = PAGES
    parameters = SurveyParameters
    no_undo = "a survey changes nothing"
    no_resume = "the earlier part of the table is lost"

    def means(self, parameters: Any) -> bool:
        return parameters.pid is not None

    def prepare(self, preparation: Preparation[SurveyParameters]) -> Plan:
        """Find the mappings; raises TargetError (ESRCH, EACCES), NotSupported, or InvalidValue without any."""
        pages = open_pages(preparation)
        nids = [node.nid for node in read_nodes(preparation.kernel) if node.total]
        surveyor = _Surveyor(pages, nids)
        control = preparation.control(surveyor.survey, least=MIN_CHUNK, most=MAX_CHUNK)
        return preparation.plan(preparation.nodes(pages.addresses.whole, 1), control, surveyor.finish)


class _Surveyor:
    """The chunk function, and its findings."""

    def __init__(self, pages: MappedPages, nids: Sequence[int]) -> None:
        self._pages = pages
        self._nids = nids
        self._lock = threading.Lock()  # guards the counts
        self._counts: list[Counter[str]] = [Counter() for _ in pages.areas]
        """Pages, for each mapping."""

    def survey(self, start: int, end: int) -> None:
        """Count the pages between two positions; raises TargetError."""
        for mapping, found in self._pages.each(start, end, "look at", self._count):
            with self._lock:
                self._counts[mapping] += found

    def _count(self, start: int, end: int) -> Counter[str]:
        found: Counter[str] = Counter()
        for run in self._pages.table.runs(start, end):
            pages = (run.end - run.start) // self._pages.page
            if not run.categories & PRESENT:
                found["swapped"] += pages
                continue
            found["present"] += pages
            found["file" if run.categories & FILE else "anonymous"] += pages
            found["huge"] += pages if run.categories & HUGE else 0
            found += self._nodes_of(run, pages)
        return found

    def _nodes_of(self, run: Run, pages: int) -> Counter[str]:
        if len(self._nids) == 1:
            return Counter({f"node{self._nids[0]}": pages})
        addresses = range(run.start, run.end, self._pages.page)
        nodes = Counter(numa_pages.page_nodes(addresses, self._pages.process.pid))
        return Counter({f"node{nid}": count for nid, count in nodes.items() if nid >= 0})

    def finish(self, outcome: Outcome) -> str:
        """The result: sums in pages, then the table, with addresses in hexadecimal."""
        sums: Counter[str] = Counter()
        for each in self._counts:
            sums += each
        columns = [*COUNTS, *(f"node{nid}" for nid in self._nids)]
        counts: dict[str, object] = {"page_size": self._pages.page, "pages": outcome.units_done}
        counts |= {"mappings": len(self._pages.areas)} | {name: self._shown(sums, name) for name in columns}
        return with_table(counts, f"start end permissions pages {' '.join(columns)} name", self._rows(columns))

    def _rows(self, columns: Sequence[str]) -> Iterator[str]:
        for area, counts in zip(self._pages.areas, self._counts, strict=True):
            numbers = " ".join(self._shown(counts, name) for name in columns)
            pages, name = area.size // self._pages.page, escaped(area.name) or "-"
            yield f"{area.start:x} {area.end:x} {area.permissions} {pages} {numbers} {name}"

    def _shown(self, counts: Counter[str], name: str) -> str:
        return "-" if name == "huge" and not self._pages.table.tells_huge else str(counts[name])
