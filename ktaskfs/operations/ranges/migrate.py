"""``migrate``: move the pages of a file of memory to NUMA nodes."""

from __future__ import annotations

import errno
import threading
from collections import Counter
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import InvalidValue, TargetError
from ktaskfs.host import numa_pages, syscalls
from ktaskfs.host.presence import HOLE
from ktaskfs.host.target import MEMORY, Target, open_target
from ktaskfs.memory.file_pages import FilePages
from ktaskfs.memory.run_log import RunLog
from ktaskfs.memory.target_errors import require_unsealed
from ktaskfs.operations.base.shared_lock import SharedLock
from ktaskfs.operations.ranges._range import PageRangeOperation, RangeParameters
from ktaskfs.span import Node, Span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.host.mapping import Mapping
    from ktaskfs.ktask import Outcome
    from ktaskfs.operations.base.plan import Plan, Preparation

CHUNK_BYTES: Final = 64 << 20
"""Copying from node to node runs at a few GiB/s: some 20 ms."""
PAUSES: Final = (0.0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)
"""Seconds before each further call for busy pages; the kernel itself tries ten times in each. There is no event to
wait for, and the holder of the lock may have no CPU."""
GRACE: Final = 1.0
"""Seconds that all windows of a task together may wait without moving a page; pages may be pinned for good."""
SHARE: Final = 4
"""GRACE plus this fraction (1/n) of the task's time is the limit."""
BUSY: Final = frozenset({"EAGAIN", "EBUSY"})


class MigrateParameters(RangeParameters):
    """A range, by default to the end of the file; pages that lie partly in it are moved. ``nodes`` is required."""


class Migrate(PageRangeOperation[MigrateParameters]):
    """move_pages(2) on a mapping under a HoleGuard.

    A page that somebody else has mapped too is moved only for a caller with CAP_SYS_NICE (MPOL_MF_MOVE_ALL).
    The caller must be allowed to write to the file: its pages are moved through a shared mapping.
    """

    name = "migrate"
    target = "a file of memory"
    description = (
        "Move the pages of the range to NUMA nodes: each node gets an even share of the range. The result counts the "
        "pages that cannot move, with the reason; holes stay holes. After a resume the result covers only the last "
        "run."
    )
    parameters = MigrateParameters
    kinds = MEMORY

    def prepare(self, preparation: Preparation[MigrateParameters]) -> Plan:
        """Open; raises InvalidValue without ``nodes`` or past the end of the file, NotSupported without userfaultfd.

        And TargetError: EPERM for a file that is sealed against writing.
        """
        parameters = preparation.parameters
        if not parameters.nodes:
            raise InvalidValue("nodes is missing: the destination of the pages")
        target = preparation.keep(open_target(preparation.kernel, parameters.path, kinds=self.kinds))
        nodes = self.nodes(preparation, target)
        require_unsealed(target, 0)
        mover = _Mover(target, preparation.keep(FilePages(target)), nodes, remember=parameters.undo)
        chunk = max(CHUNK_BYTES // target.page_size, 1)
        control = preparation.control(mover.move, least=max(chunk // 4, 1), most=chunk, undo_func=mover.undo)
        return preparation.plan(nodes, control, mover.finish)


class _Mover:
    """The chunk function, and the results for pages. ``remember``: record old nodes, for the undo."""

    def __init__(self, target: Target, pages: FilePages, nodes: Sequence[Node], *, remember: bool) -> None:
        self._target = target
        self._pages = pages
        self._page = target.page_size
        self._nodes = nodes
        self._shared = bool(syscalls.capget()[0] >> syscalls.CAP_SYS_NICE & 1)
        self._remember = remember
        self._began = monotonic()
        self._turns = SharedLock()  # each first attempt together with others, each further one alone
        self._lock = threading.Lock()  # guards the next three fields
        self._counts: Counter[tuple[str, int]] = Counter()
        self._origins: dict[int, RunLog] = {}
        self._in_vain = 0.0

    def move(self, start: int, end: int) -> None:
        """Move the pages from ``start`` to ``end`` to their node; raises TargetError."""
        self._pages.require(end)
        nid = next(node.nid for node in self._nodes if node.start <= start < node.start + node.size)
        try:
            for window in self._pages.windows(start, end):
                self._move_window(window, nid)
        except OSError as error:
            raise TargetError.from_os(error, f"move pages of {self._target.path}") from error

    def _move_window(self, window: Span, nid: int) -> None:
        before, reasons = self._bring(window, nid, remember=self._remember)
        counts: Counter[tuple[str, int]] = Counter()
        counts["there", nid] = before.count(nid)
        for page, reason in reasons.items():
            counts[reason, nid if reason == "moved" else before[page - window.start]] += 1
        with self._lock:
            self._counts += counts

    def _bring(self, window: Span, nid: int, *, remember: bool) -> tuple[list[int], dict[int, str]]:
        """Move the pages of a window to ``nid``; returns their old nodes, and the results for pages on other nodes.

        Each move of a huge page tries for the lock of the file's mappings (hugetlb_page_mapping_lock_write in
        mm/hugetlb.c), which mapping takes too. Threads can keep each other from it, so they try a second time alone.
        """
        with self._turns.together(), self._pages.mapped(window) as (mapping, before):
            wrong = [page for page, node in enumerate(before, window.start) if node not in (HOLE, nid)]
            if remember:  # before they move, so that every page that moves can be moved back
                for page in wrong:
                    self._origin(before[page - window.start]).add(page, page + 1)
            reasons = self._try(mapping, wrong, nid) if wrong else {}
        busy = [page for page in wrong if reasons[page] in BUSY]
        for pause in PAUSES:
            if not busy or (pause and not self._may_wait()):
                break
            sleep(pause)
            with self._turns.alone(), self._pages.mapped(Span(busy[0], busy[-1] + 1)) as (mapping, _):
                reasons |= self._try(mapping, busy, nid)
            still = [page for page in busy if reasons[page] in BUSY]
            if len(still) == len(busy):
                with self._lock:
                    self._in_vain += pause
            busy = still
        return before, reasons

    def _may_wait(self) -> bool:
        """Whether the time of vain waiting allows another wait."""
        with self._lock:
            return self._in_vain < GRACE + (monotonic() - self._began) / SHARE

    def _try(self, mapping: Mapping, pages: Sequence[int], nid: int) -> dict[int, str]:
        """The result of one call for each of these pages: ``moved``, or the errno's name.

        A page that moved with another one (both in one huge page of tmpfs) still gets an error, so what counts is
        where it is afterwards.
        """
        addresses = [mapping.address + page * self._page - mapping.offset for page in pages]
        try:
            states = numa_pages.move_pages(addresses, [nid] * len(addresses), shared=self._shared)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            states = [-errno.ENOMEM] * len(addresses)  # the node is full: the kernel did not try the rest
        ends = zip(pages, states, numa_pages.page_nodes(addresses), strict=True)
        return {page: "moved" if now == nid else errno.errorcode.get(-state, "EAGAIN") for page, state, now in ends}

    def _origin(self, nid: int) -> RunLog:
        with self._lock:
            return self._origins.setdefault(nid, RunLog())

    def undo(self, start: int, end: int) -> None:
        """Move the moved pages from ``start`` to ``end`` back; raises TargetError if a page stays."""
        stayed = 0
        with self._lock:
            origins = list(self._origins.items())
        for nid, log in origins:
            for run in log.within(start, end):
                for window in self._pages.windows(run.start, run.end):
                    stayed += self._move_back(window, nid)
        if stayed:
            raise TargetError(f"{self._target.path}: {stayed} pages cannot be moved back", errno=errno.EBUSY)

    def _move_back(self, window: Span, nid: int) -> int:
        """Returns how many pages stayed."""
        reasons = list(self._bring(window, nid, remember=False)[1].values())
        with self._lock:
            self._counts["moved_back", nid] += reasons.count("moved")
        return len(reasons) - reasons.count("moved")

    def finish(self, outcome: Outcome) -> str:
        """The result: counts, then a row for each kind of result and node.

        The node is the current one.
        """
        counts = sorted(self._counts.items())
        sums: Counter[str] = Counter()
        for (what, _), count in counts:
            sums["failed" if what.isupper() else what] += count
        head = [f"{what} {sums[what]}\n" for what in ("moved", "there", "failed")]
        rows = [f"{what} {nid} {count}\n" for (what, nid), count in counts if count]
        return "".join([*head, "outcome node pages\n", *rows])
