"""``migrate`` of a process: move its pages to NUMA nodes."""

from __future__ import annotations

import errno
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import InvalidValue
from ktaskfs.host import numa_pages, syscalls
from ktaskfs.host.page_table import HUGE, PRESENT
from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.processes._mappings import MappedPages, ProcessParameters, open_pages
from ktaskfs.units import PAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ktaskfs.host.page_table import Run
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation
    from ktaskfs.span import Node

MIN_CHUNK: Final = 4 << 10
MAX_CHUNK: Final = 16 << 10
"""Pages: 64 MiB of small ones are copied in some 50 ms."""
HUGE_PAGES: Final = 512
"""Pages in a huge page, which moves as a whole."""


class MigrateParameters(ProcessParameters):
    """A process, and which of its mappings. ``nodes`` is required."""


class Migrate(Operation[MigrateParameters]):
    """move_pages(2) for the pages that PageTable finds, one chunk at a time."""

    name = "migrate"
    target = "a process"
    description = (
        "Move the pages of a process to NUMA nodes; each node gets an even share of the mappings. The result counts "
        "the pages that cannot move, with the reason. New pages follow the process's own policy. Pages that several "
        "processes map move only if the caller has CAP_SYS_NICE."
    )
    units = PAGES
    parameters = MigrateParameters
    no_undo = "the process may have moved, freed or shared its pages"
    no_resume = "the process may have changed its mappings"

    def means(self, parameters: Any) -> bool:
        return parameters.pid is not None

    def prepare(self, preparation: Preparation[MigrateParameters]) -> Plan:
        """Find the mappings; raises InvalidValue without ``nodes`` or mappings, TargetError (ESRCH, EACCES)."""
        parameters = preparation.parameters
        if not parameters.nodes:
            raise InvalidValue("nodes is missing: the destination of the pages")
        pages = open_pages(preparation)
        nodes = preparation.nodes(pages.addresses.whole, 1)
        mover = _Mover(pages, nodes)
        control = preparation.control(mover.move, least=MIN_CHUNK, most=MAX_CHUNK)
        return preparation.plan(nodes, control, mover.finish)


class _Mover:
    """The chunk function, and the results for pages."""

    def __init__(self, pages: MappedPages, nodes: Sequence[Node]) -> None:
        self._pages = pages
        self._nodes = nodes
        self._shared = bool(syscalls.capget()[0] >> syscalls.CAP_SYS_NICE & 1)
        self._lock = threading.Lock()  # guards the counts
        self._counts: Counter[tuple[str, int]] = Counter()

    def move(self, start: int, end: int) -> None:
        """Move the pages between two positions to their node; raises TargetError."""
        nid = next(node.nid for node in self._nodes if node.start <= start < node.start + node.size)
        for _, counts in self._pages.each(start, end, "move", lambda low, high: self._move(low, high, nid)):
            with self._lock:
                self._counts += counts

    def _move(self, start: int, end: int, nid: int) -> Counter[tuple[str, int]]:
        weights = dict(self._heads(start, end))
        before = dict(zip(weights, numa_pages.page_nodes(list(weights), self._pages.process.pid), strict=True))
        wrong = [address for address, node in before.items() if node not in (nid, -errno.ENOENT)]
        counts: Counter[tuple[str, int]] = Counter()
        for address, node in before.items():
            if node == nid:
                counts["there", nid] += weights[address]
        if wrong:
            states = self._try(wrong, nid)
            after = numa_pages.page_nodes(wrong, self._pages.process.pid)
            for address, state, now in zip(wrong, states, after, strict=True):
                moved = now == nid
                reason = "moved" if moved else errno.errorcode.get(-state, "EAGAIN")
                if moved or now >= 0:  # otherwise it is gone
                    counts[reason, now] += weights[address]
        return counts

    def _try(self, addresses: Sequence[int], nid: int) -> list[int]:
        try:
            nids = [nid] * len(addresses)
            return numa_pages.move_pages(addresses, nids, shared=self._shared, pid=self._pages.process.pid)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            return [-errno.ENOMEM] * len(addresses)  # the node is full: the kernel did not try the rest

    def _heads(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The address of each present page, or of each piece of a huge page, and its number of pages."""
        for run in self._pages.table.runs(start, end):
            if run.categories & PRESENT:
                yield from self._heads_of(run)

    def _heads_of(self, run: Run) -> Iterator[tuple[int, int]]:
        step = self._pages.page * (HUGE_PAGES if run.categories & HUGE else 1)
        at = run.start
        while at < run.end:
            stop = min((at // step + 1) * step, run.end)
            yield at, (stop - at) // self._pages.page
            at = stop

    def finish(self, outcome: Outcome) -> str:
        """The result: counts, then a row for each kind of result and node where the pages are now."""
        sums: Counter[str] = Counter()
        for (what, _), count in self._counts.items():
            sums["failed" if what.isupper() else what] += count
        lines = [f"mappings {len(self._pages.areas)}\n"]
        lines += [f"{what} {sums[what]}\n" for what in ("moved", "there", "failed")]
        rows = [f"{what} {nid} {count}\n" for (what, nid), count in sorted(self._counts.items())]
        return "".join([*lines, "outcome node pages\n", *rows])
