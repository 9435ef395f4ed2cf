"""``migrate``: move the pages of a file of memory to NUMA nodes."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import InvalidValue, TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.mapping import HoleGuard, Mapping
from ktaskfs.host.presence import HOLE, data_extents, node_of_pages
from ktaskfs.host.target import MEMORY, Kind, Target, open_target
from ktaskfs.ktask import Control, Node
from ktaskfs.operations.extent import Extent, chunk_sizes, make_nodes, resolve_extent, windows
from ktaskfs.operations.guarded import require_guard
from ktaskfs.operations.operation import Operation, Plan, Range
from ktaskfs.operations.parameters import RangeParameters
from ktaskfs.operations.runlog import RunLog
from ktaskfs.operations.trouble import truncated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ktaskfs.host.kernel import Kernel

WINDOW: Final = 1024
"""Pages moved with one call; 4 MiB of tmpfs, which count as the worker's resident memory while they are mapped."""
CHUNK_BYTES: Final = 64 << 20
"""Copying from node to node runs at a few GiB/s: some 20 ms."""


ATTEMPTS: Final = 10
"""Calls for a page that is busy; the kernel itself tries ten times in each."""


@dataclass(frozen=True, kw_only=True)
class MigrateParameters(RangeParameters):
    """A range, by default to the end of the file; pages that lie in it partly are moved. ``nodes`` is required."""


class Migrate(Operation[MigrateParameters]):
    """move_pages(2) on a mapping under a HoleGuard.

    A page that somebody else has mapped too is moved only for a caller with CAP_SYS_NICE (MPOL_MF_MOVE_ALL).
    The caller must be allowed to write to the file: a userfaultfd asks for that.
    """

    name = "migrate"
    description = (
        "Move the pages of the range to NUMA nodes: each node gets an even share of the range. "
        "Pages that cannot be moved are counted, with the reason; a hole stays a hole. "
        "After a resume the result covers the last run alone."
    )
    units = "pages"
    parameters = MigrateParameters

    def prepare(self, kernel: Kernel, parameters: MigrateParameters, remaining: Sequence[Range] | None) -> Plan:
        """Open; raises InvalidValue without ``nodes`` or past the end of the file, NotSupported without userfaultfd."""
        if not parameters.nodes:
            raise InvalidValue("nodes is missing: where the pages are to go")
        target = open_target(kernel, parameters.path, kinds=MEMORY)
        try:
            extent = resolve_extent(parameters, target.size(), may_grow=False).widened(target.page_size)
            pages = Extent(extent.start // target.page_size, extent.end // target.page_size)
            nodes = make_nodes(kernel, pages, parameters.nodes, 1, remaining)
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
        self._turn = threading.Lock()  # held for every attempt but the first
        self._lock = threading.Lock()  # guards the two below
        self._counts: Counter[tuple[str, int]] = Counter()
        self._origins: dict[int, RunLog] = {}

    def move(self, start: int, end: int) -> None:
        """Move the pages from ``start`` to ``end`` to their node; raises TargetError."""
        if self._target.size() <= (end - 1) * self._page:
            raise truncated(self._target)
        nid = next(node.nid for node in self._nodes if node.start <= start < node.start + node.size)
        try:
            for low, high in self._candidates(start, end):
                for window in windows(low, high, WINDOW):
                    self._move_window(window.start, window.end, nid)
        except OSError as error:
            raise TargetError.from_os(error, f"move pages of {self._target.path}") from error

    def _candidates(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The ranges in which there may be pages: hugetlbfs does not tell."""
        if self._target.kind is Kind.HUGETLBFS:
            if self._target.allocated():
                yield start, end
            return
        for data, hole in data_extents(self._target.fd, start * self._page, end * self._page):
            yield data // self._page, -(-hole // self._page)

    def _move_window(self, start: int, end: int, nid: int) -> None:
        with self._mapped(start, end) as mapping:
            before = node_of_pages(mapping, start * self._page, end * self._page, self._page)
            wrong = [index for index, node in enumerate(before) if node not in (HOLE, nid)]
            reasons = self._move_pages(mapping, wrong, nid)
        counts: Counter[tuple[str, int]] = Counter()
        counts["there", nid] = before.count(nid)
        for index, reason in zip(wrong, reasons, strict=True):
            counts[reason, nid if reason == "moved" else before[index]] += 1
            if self._undo and reason == "moved":
                self._origin(before[index]).add(start + index, start + index + 1)
        with self._lock:
            self._counts += counts

    def _mapped(self, start: int, end: int) -> Mapping:
        mapping = Mapping(self._target.fd, start * self._page, (end - start) * self._page, reserve=False)
        self._guard.guard(mapping)
        return mapping

    def _move_pages(self, mapping: Mapping, indexes: Sequence[int], nid: int) -> list[str]:
        """What became of each of these pages of a mapping: ``moved``, or the errno's name.

        A page that went along with another one (both in one huge page of tmpfs) has an error of its own, so what
        counts is where it is afterwards.
        """
        reasons = dict.fromkeys(indexes, "")
        left = list(indexes)
        for attempt in range(ATTEMPTS):
            if not left:
                break
            # Each move of a huge page tries for the lock of the file's mappings (hugetlb_page_mapping_lock_write in
            # mm/hugetlb.c), and threads that take no turns can keep each other from it.
            with self._turn if attempt else contextlib.nullcontext():
                left = self._try_pages(mapping, left, nid, reasons)
        return list(reasons.values())

    def _try_pages(self, mapping: Mapping, indexes: Sequence[int], nid: int, reasons: dict[int, str]) -> list[int]:
        """Enter what one call made of the pages; gives those that are worth another."""
        addresses = [mapping.address + index * self._page for index in indexes]
        try:
            states = syscalls.move_pages(addresses, [nid] * len(addresses), shared=self._shared)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            states = [-errno.ENOMEM] * len(addresses)  # the node is full: the rest were not tried
        again = []
        for index, state, now in zip(indexes, states, syscalls.page_nodes(addresses), strict=True):
            reasons[index] = "moved" if now == nid else errno.errorcode.get(-state, "EAGAIN")
            if now != nid and -state in (errno.EAGAIN, errno.EBUSY):
                again.append(index)
        return again

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
                for window in windows(low, high, WINDOW):
                    stayed += self._move_back(window.start, window.end, nid)
        if stayed:
            raise TargetError(f"{self._target.path}: {stayed} pages could not be moved back", errno=errno.EBUSY)

    def _move_back(self, start: int, end: int, nid: int) -> int:
        with self._mapped(start, end) as mapping:
            nodes = node_of_pages(mapping, start * self._page, end * self._page, self._page)
            wrong = [index for index, node in enumerate(nodes) if node not in (HOLE, nid)]
            reasons = self._move_pages(mapping, wrong, nid)
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
