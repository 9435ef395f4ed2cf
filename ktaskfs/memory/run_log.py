"""The positions that a task must undo, merged into few runs."""

from __future__ import annotations

import bisect
import errno
import threading
from array import array
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import TargetError
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_RUNS: Final = 1 << 18
"""Runs in one log: 4 MiB. Adjacent runs merge, so only separate ones count."""


class RunLog:
    """A set of disjoint runs of positions, in order; safe to use from several threads."""

    def __init__(self, most: int = MAX_RUNS) -> None:
        self._most = most
        self._lock = threading.Lock()  # guards both arrays
        self._starts = array("q")
        self._ends = array("q")

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, start: int, end: int) -> None:
        """Add a run that overlaps no other. Raises TargetError (ENOMEM) when the log is full."""
        with self._lock:
            index = bisect.bisect_left(self._starts, start)
            joins_left = index > 0 and self._ends[index - 1] == start
            joins_right = index < len(self._starts) and self._starts[index] == end
            if joins_left and joins_right:
                self._ends[index - 1] = self._ends.pop(index)
                self._starts.pop(index)
            elif joins_left:
                self._ends[index - 1] = end
            elif joins_right:
                self._starts[index] = start
            elif len(self._starts) >= self._most:
                raise TargetError(
                    f"undo=1 remembers at most {self._most} separate ranges of a file", errno=errno.ENOMEM
                )
            else:
                self._starts.insert(index, start)
                self._ends.insert(index, end)

    def within(self, start: int, end: int) -> Iterator[Span]:
        """The remembered runs, cut to the positions from ``start`` to ``end``."""
        with self._lock:
            first = bisect.bisect_right(self._ends, start)
            last = bisect.bisect_left(self._starts, end)
            runs = list(zip(self._starts[first:last], self._ends[first:last], strict=True))
        for low, high in runs:
            yield Span(max(low, start), min(high, end))
