"""Durations counted in a few fixed classes, for a histogram of ``metrics``."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import Final, NamedTuple

BOUNDS: Final = (0.1, 1.0, 10.0, 60.0, 300.0, 1800.0)
"""Upper bounds in seconds, inclusive; one more class has the longer ones. Each costs a series for each operation."""


class Durations(NamedTuple):
    """How many durations fell into each class, and their sum in seconds."""

    counts: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    total: float = 0.0

    def plus(self, seconds: float) -> Durations:
        """These durations and another one, of ``seconds``."""
        place = bisect_left(BOUNDS, seconds)
        counts = tuple(count + (number == place) for number, count in enumerate(self.counts))
        return Durations(counts, self.total + seconds)

    def up_to(self) -> tuple[int, ...]:
        """For each bound, and for infinity, the number of durations up to it."""
        return tuple(accumulate(self.counts))
