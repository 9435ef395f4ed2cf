"""A table of runs of pages with their NUMA nodes, of bounded size."""

from __future__ import annotations

import bisect
import threading
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Final

from ktaskfs.host.presence import HOLE
from ktaskfs.span import Node

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MAX_ROWS: Final = 1 << 15
"""Rows that are kept, the first ones of the file: about as many as fit into a result of 1 MiB."""


class RunTable:
    """Collects runs from several threads, in any order, and merges those that touch; keeps the first ``most`` rows."""

    def __init__(self, most: int = MAX_ROWS) -> None:
        self._most = most
        self._lock = threading.Lock()  # guards everything below
        self._starts = array("q")
        self._ends = array("q")
        self._nodes = array("q")
        self._limit: int | None = None
        """Rows from this page on are not kept."""
        self._rows = 0
        self._edges: dict[int, int] = {}
        """Open edges of pieces, whose neighbour is still unknown, with the node there."""
        self._pages: Counter[int] = Counter()

    def add(self, runs: Sequence[Node]) -> None:
        """Enter a new piece of the file: touching runs in order, on alternating nodes.

        A run is on NUMA node ``nid``, or missing (HOLE).
        """
        with self._lock:
            self._rows += len(runs)
            for position, node in ((runs[0].start, runs[0].nid), (runs[-1].end, runs[-1].nid)):
                if position not in self._edges:
                    self._edges[position] = node
                elif self._edges.pop(position) == node:
                    self._rows -= 1
            for run in runs:
                self._pages[run.nid] += run.size
                self._keep(run)

    def _keep(self, run: Node) -> None:
        if self._limit is not None and run.start >= self._limit:
            return
        index = bisect.bisect_left(self._starts, run.start)
        before, after = index - 1, index
        joins_before = before >= 0 and self._ends[before] == run.start and self._nodes[before] == run.nid
        joins_after = after < len(self._starts) and self._starts[after] == run.end and self._nodes[after] == run.nid
        if joins_before and joins_after:
            self._ends[before] = self._ends.pop(after)
            self._starts.pop(after)
            self._nodes.pop(after)
        elif joins_before:
            self._ends[before] = run.end
        elif joins_after:
            self._starts[after] = run.start
        else:
            for column, value in ((self._starts, run.start), (self._ends, run.end), (self._nodes, run.nid)):
                column.insert(index, value)
            if len(self._starts) > self._most:
                self._limit = self._starts.pop()
                self._ends.pop()
                self._nodes.pop()

    @property
    def rows(self) -> int:
        """Rows of the whole table, including those not kept."""
        return self._rows

    @property
    def pages(self) -> Mapping[int, int]:
        """Pages by node, HOLE among them."""
        return self._pages

    @property
    def present(self) -> int:
        """Pages entered that exist."""
        with self._lock:
            return self._pages.total() - self._pages[HOLE]

    @property
    def seen(self) -> int:
        """Pages entered, holes among them."""
        with self._lock:
            return self._pages.total()

    def __iter__(self) -> Iterator[Node]:
        """The kept rows, in order; without the last one if a row that was not kept may continue it."""
        for start, end, nid in zip(self._starts, self._ends, self._nodes, strict=True):
            if end != self._limit:
                yield Node(start, end - start, nid)
