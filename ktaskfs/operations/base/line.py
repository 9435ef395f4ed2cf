"""Files or ranges of addresses, laid end to end: maps the positions of a task to places in each."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Line:
    """``ends`` has the position at the end of each item, in order: the sums of their sizes."""

    def __init__(self, ends: Sequence[int]) -> None:
        self._ends = ends

    @property
    def whole(self) -> Span:
        """All positions."""
        return Span(0, self._ends[-1] if self._ends else 0)

    def begin(self, index: int) -> int:
        """The position of the first unit of item ``index``."""
        return self._ends[index - 1] if index else 0

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, Span]]:
        """The items between two positions, and the part of each, counted from its beginning. Skips empty items."""
        index = bisect_right(self._ends, start)
        begin = self.begin(index)
        while start < end and index < len(self._ends):
            stop = self._ends[index]
            if stop > start:
                yield index, Span(start - begin, min(end, stop) - begin)
            start = begin = stop
            index += 1
