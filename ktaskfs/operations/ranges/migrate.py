"""``migrate``: move the pages of a file of memory to NUMA nodes."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import Counter
from dataclasses import dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import InvalidValue, TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.mapping import HoleGuard, Mapping
from ktaskfs.host.presence import HOLE, data_extents, node_of_pages
from ktaskfs.host.target import MEMORY, Filesystem, Target, open_target
from ktaskfs.ktask import Control
from ktaskfs.memory.guarded import require_guard
from ktaskfs.memory.runlog import RunLog
from ktaskfs.memory.trouble import require_unsealed, truncated
from ktaskfs.operations.base.nodes import chunk_sizes, make_nodes
from ktaskfs.operations.base.operation import Plan
from ktaskfs.operations.base.shared_lock import SharedLock
from ktaskfs.operations.ranges._range import PageRangeOperation, RangeParameters, resolve_extent
from ktaskfs.span import Node, Span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ktaskfs.host.kernel import Kernel

WINDOW: Final = 1024
"""Pages moved with one call; 4 MiB of tmpfs, which count as the worker's resident memory while they are mapped."""
CHUNK_BYTES: Final = 64 << 20
"""Copying from node to node runs at a few GiB/s: some 20 ms."""
PAUSES: Final = (0.0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)
"""Seconds before each further call for pages that are busy; the kernel itself tries ten times in each. There is
nothing to wait for that it would tell, and whoever holds a lock may be without a processor meanwhile."""
GRACE: Final = 1.0
"""Seconds that all windows of a task together may wait without a page moved; pages may be pinned for good."""
SHARE: Final = 4
"""One part in so many of the task's time may be added to that."""
BUSY: Final = frozenset({"EAGAIN", "EBUSY"})


@dataclass(frozen=True, kw_only=True)
class MigrateParameters(RangeParameters):
    """A range, by default to the end of the file; pages that lie in it partly are moved. ``nodes`` is required."""


class Migrate(PageRangeOperation[MigrateParameters]):
    """move_pages(2) on a mapping under a HoleGuard.

    A page that somebody else has mapped too is moved only for a caller with CAP_SYS_NICE (MPOL_MF_MOVE_ALL).
    The caller must be allowed to write to the file: its pages are moved through a shared mapping.
    """

    name = "migrate"
    description = (
        "Move the pages of the range to NUMA nodes: each node gets an even share of the range. "
        "Pages that cannot be moved are counted, with the reason; a hole stays a hole. "
        "After a resume the result covers the last run alone."
    )
    parameters = MigrateParameters

    def prepare(self, kernel: Kernel, parameters: MigrateParameters, remaining: Sequence[Node] | None) -> Plan:
        """Open; raises InvalidValue without ``nodes`` or past the end of the file, NotSupported without userfaultfd.

        And TargetError: EPERM for a file that is sealed against writing.
        """
        if not parameters.nodes:
            raise InvalidValue("nodes is missing: where the pages are to go")
        target = open_target(kernel, parameters.path, kinds=MEMORY)
        try:
            extent = resolve_extent(parameters, target.size(), may_grow=False).widened(target.page_size)
            pages = Span(extent.start // target.page_size, extent.end // target.page_size)
            nodes = make_nodes(kernel, pages, parameters.nodes, 1, remaining)
            require_unsealed(target, 0)
            mover = _Mover(target, require_guard(target), nodes, undo=parameters.undo)
        except BaseException:
            target.close()
            raise
        chunk = max(CHUNK_BYTES // target.page_size, 1)
        sizes = chunk_sizes(parameters.chunk, least=max(chunk // 4, 1), most=chunk, align=1)
        control = Control(
            mover.move,
            min_chunk_size=sizes.least,
            max_chunk_size=sizes.most,
            undo_func=mover.undo if parameters.undo else None,
        )
        return Plan(nodes=nodes, control=control, abort=mover.close, finish=mover.finish)


class _Mover:
    """The chunk function, what it holds open, and what became of the pages."""

    def __init__(self, target: Target, guard: HoleGuard, nodes: Sequence[Node], *, undo: bool) -> None:
        self._target = target
        self._guard = guard
        self._page = target.page_size
        self._nodes = nodes
        self._shared = bool(syscalls.capget()[0] >> syscalls.CAP_SYS_NICE & 1)
        self._undo = undo
        self._began = monotonic()
        self._turns = SharedLock()  # each first attempt together with others, each further one alone
        self._lock = threading.Lock()  # guards the three below
        self._counts: Counter[tuple[str, int]] = Counter()
        self._origins: dict[int, RunLog] = {}
        self._in_vain = 0.0

    def move(self, start: int, end: int) -> None:
        """Move the pages from ``start`` to ``end`` to their node; raises TargetError."""
        if self._target.size() <= (end - 1) * self._page:
            raise truncated(self._target)
        nid = next(node.nid for node in self._nodes if node.start <= start < node.start + node.size)
        try:
            for low, high in self._candidates(start, end):
                for window in Span(low, high).windows(WINDOW):
                    self._move_window(window.start, window.end, nid)
        except (OSError, TargetError) as error:
            failure = error
            if not isinstance(error, TargetError):
                failure = TargetError.from_os(error, f"move pages of {self._target.path}")
            if self._undo:  # the framework takes back finished chunks only
                try:
                    self.undo(start, end)
                except (OSError, TargetError) as left:
                    failure.add_note(f"undo failed at {start}: {left!r}")
            if failure is error:
                raise
            raise failure from error

    def _candidates(self, start: int, end: int) -> Iterator[Span]:
        """The ranges in which there may be pages: hugetlbfs does not tell."""
        if self._target.filesystem is Filesystem.HUGETLBFS:
            if self._target.allocated():
                yield Span(start, end)
            return
        for data, hole in data_extents(self._target.fd, start * self._page, end * self._page):
            yield Span(data // self._page, -(-hole // self._page))

    def _move_window(self, start: int, end: int, nid: int) -> None:
        before, reasons = self._bring(start, end, nid, remember=self._undo)
        counts: Counter[tuple[str, int]] = Counter()
        counts["there", nid] = before.count(nid)
        for page, reason in reasons.items():
            counts[reason, nid if reason == "moved" else before[page - start]] += 1
        with self._lock:
            self._counts += counts

    @contextlib.contextmanager
    def _mapped(self, start: int, end: int) -> Iterator[tuple[Mapping, list[int]]]:
        """The pages, mapped, and the node of each."""
        low, high = start * self._page, end * self._page
        with Mapping(self._target.fd, low, high - low, reserve=False) as mapping:
            self._guard.guard(mapping)
            yield mapping, node_of_pages(mapping, low, high, self._page)

    def _bring(self, start: int, end: int, nid: int, *, remember: bool) -> tuple[list[int], dict[int, str]]:
        """Move the pages of a window to ``nid``; gives where each was, and what became of those that were elsewhere.

        Each move of a huge page tries for the lock of the file's mappings (hugetlb_page_mapping_lock_write in
        mm/hugetlb.c), which mapping takes too. Threads can keep each other from it, so they try a second time alone.
        """
        with self._turns.together(), self._mapped(start, end) as (mapping, before):
            wrong = [page for page, node in enumerate(before, start) if node not in (HOLE, nid)]
            if remember:  # before they move: none is moved that could not be moved back
                for page in wrong:
                    self._origin(before[page - start]).add(page, page + 1)
            reasons = self._try(mapping, wrong, nid) if wrong else {}
        busy = [page for page in wrong if reasons[page] in BUSY]
        for pause in PAUSES:
            if not busy or (pause and not self._may_wait()):
                break
            sleep(pause)
            with self._turns.alone(), self._mapped(busy[0], busy[-1] + 1) as (mapping, _):
                reasons |= self._try(mapping, busy, nid)
            still = [page for page in busy if reasons[page] in BUSY]
            if len(still) == len(busy):
                with self._lock:
                    self._in_vain += pause
            busy = still
        return before, reasons

    def _may_wait(self) -> bool:
        """Whether so little was waited in vain that it is worth it again."""
        with self._lock:
            return self._in_vain < GRACE + (monotonic() - self._began) / SHARE

    def _try(self, mapping: Mapping, pages: Sequence[int], nid: int) -> dict[int, str]:
        """What one call made of each of these pages: ``moved``, or the errno's name.

        A page that went along with another one (both in one huge page of tmpfs) has an error of its own, so what
        counts is where it is afterwards.
        """
        addresses = [mapping.address + page * self._page - mapping.offset for page in pages]
        try:
            states = syscalls.move_pages(addresses, [nid] * len(addresses), shared=self._shared)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            states = [-errno.ENOMEM] * len(addresses)  # the node is full: the rest were not tried
        ends = zip(pages, states, syscalls.page_nodes(addresses), strict=True)
        return {page: "moved" if now == nid else errno.errorcode.get(-state, "EAGAIN") for page, state, now in ends}

    def _origin(self, nid: int) -> RunLog:
        with self._lock:
            return self._origins.setdefault(nid, RunLog())

    def undo(self, start: int, end: int) -> None:
        """Move what was moved from ``start`` to ``end`` back to where it was; raises TargetError if a page stays."""
        stayed = 0
        with self._lock:
            origins = list(self._origins.items())
        for nid, log in origins:
            for low, high in log.within(start, end):
                for window in Span(low, high).windows(WINDOW):
                    stayed += self._move_back(window.start, window.end, nid)
        if stayed:
            raise TargetError(f"{self._target.path}: {stayed} pages could not be moved back", errno=errno.EBUSY)

    def _move_back(self, start: int, end: int, nid: int) -> int:
        reasons = list(self._bring(start, end, nid, remember=False)[1].values())
        with self._lock:
            self._counts["moved_back", nid] += reasons.count("moved")
        return len(reasons) - reasons.count("moved")

    def finish(self) -> str:
        """Close everything; the result: counts, then a row for each outcome and node.

        For pages that were moved or there already the node is where they are, for others where they stayed.
        """
        self.close()
        counts = sorted(self._counts.items())
        sums: Counter[str] = Counter()
        for (what, _), count in counts:
            sums["failed" if what.isupper() else what] += count
        head = [f"{what} {sums[what]}\n" for what in ("moved", "there", "failed")]
        rows = [f"{what} {nid} {count}\n" for (what, nid), count in counts if count]
        return "".join([*head, "outcome node pages\n", *rows])

    def close(self) -> None:
        """Close everything."""
        self._guard.close()
        self._target.close()
