"""The search for the number of threads of one NUMA node: which number to measure next, and which one to keep.

docs/explanation/threads.md explains it. It uses no threads and no clock, only measurements.
"""

from __future__ import annotations

from math import ceil, log, sqrt
from typing import Final

GAIN: Final = 0.04
"""More threads are kept if they bring at least this much speed (as a logarithm, which is a share of about 4 %)."""
LOSS: Final = 0.025
"""Fewer threads are kept if they cost at most this much, of the speed before the number was lowered."""
_SLOPE: Final = 0.4
"""Fewer threads must also cost at most this part of the loss expected if each thread were equally fast."""
_SURE: Final = 2.0
"""Standard errors from the threshold that allow a decision before the longest measurement."""
_LONGEST: Final = 12
"""Chunks of each thread after which a measurement is always decided."""
_FEW: Final = 8
"""Minimum chunks, over all threads, for a decision."""
_DRIFT: Final = 0.1
"""Minimum change of the kept number's speed, twice in a row, that restarts the search."""
_REST: Final = 12
"""Measurements of the kept number between two trials of another one."""
_RESTS_MOST: Final = 4
"""Maximum rests between two trials of fewer threads, which cost speed; each failure doubles the rests."""
_WORTH: Final = 50
"""Fewer threads are tried only if the possible loss is at most this fraction (1/n) of the rest."""
_ENOUGH: Final = 6
"""Minimum chunks left for each thread to try more threads."""
_CLOSE: Final = 1.1
"""A number this close to one that is too small is not lowered."""
_UNITS_MAX: Final = 1 << 400
"""Maximum units that count in one piece; the square of more would not fit a float."""
_LEAST_NOISE: Final = 0.02**2
"""Assumed minimum variance of a chunk's speed."""


class Measure:
    """The speed of chunks that ran on ``threads`` threads: each piece is some chunks of one thread."""

    __slots__ = ("_mean", "_pieces", "_spread", "busy_ns", "chunks", "stalled_ns", "threads", "units")

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.chunks = 0
        self.units = 0
        self.busy_ns = 0
        self.stalled_ns = 0
        """Time of stalled threads, which may wait for a lock of others."""
        self._pieces = 0
        self._mean = 0.0
        self._spread = 0.0

    def add(self, chunks: int, units: int, busy_ns: int) -> None:
        units = min(units, _UNITS_MAX)
        speed = units / max(busy_ns, 1)
        self.chunks += chunks
        self.units += units
        self.busy_ns += busy_ns
        self._pieces += 1
        step = speed - self._mean
        self._mean += step * chunks / self.chunks
        self._spread += chunks * step * (speed - self._mean)

    def absorb(self, other: Measure) -> None:
        """Add a measurement of the same number of threads at another time."""
        if other.chunks:
            self.chunks += other.chunks
            self.units += other.units
            self.busy_ns += other.busy_ns
            self.stalled_ns += other.stalled_ns
            step = other._mean - self._mean
            self._mean += step * other.chunks / self.chunks
            self._pieces += other._pieces
            self._spread += other._spread + other.chunks * step * (other._mean - self._mean)

    @property
    def each(self) -> float:
        """Units in a nanosecond of one thread."""
        return self.units / max(self.busy_ns + self.stalled_ns, 1)

    @property
    def rate(self) -> float:
        """Units in a nanosecond of all threads."""
        return self.threads * self.each

    @property
    def variance(self) -> float:
        """The variance of one chunk's speed, as a share of the mean; 0.0 if it is not known."""
        if self._pieces < 2 or self._mean <= 0:
            return 0.0
        return self._spread / (self._pieces - 1) / self._mean**2


class Search:
    """Begins with ``threads``, and never goes above ``most``, which may change at any time."""

    def __init__(self, threads: int, most: int) -> None:
        self.kept = threads
        """The best number so far."""
        self.tried = 0
        """The number on trial, 0: none."""
        self.most = most
        self._noise = _LEAST_NOISE  # the variance of a chunk's speed, as a share of its square
        self._reference: Measure | None
        """The measure of the kept number."""
        self._top: Measure | None
        """The reference before the reductions since the last rest, if there were any."""
        self._aside: Measure | None = None  # of the number on trial, while the kept one is measured again
        self._check_at = 0  # chunks of a measure at its next evaluation
        self._forget()

    def _forget(self) -> None:
        """Restart the search in both directions, by doubling and halving."""
        self._reference = self._top = None
        self._drifted = False
        self._up, self._down = True, True  # more, fewer are still to be tried
        self._doubling = True
        self._too_few = 0  # a number that is too small, 0: none is known
        self._best_each = 0.0  # the speed of one thread among so few
        self._best_error = 0.0
        self._rest = 0  # measurements until others are tried
        self._rests = 0  # rests since fewer threads were tried
        self._rests_due = 1

    @property
    def target(self) -> int:
        """The threads to have now."""
        return self.tried or self.kept

    @property
    def claim(self) -> int:
        """The threads to claim, even while fewer are on trial."""
        return max(self.kept, self.tried, self._aside.threads if self._aside else 0)

    @property
    def settled(self) -> bool:
        """Whether, by all measures so far, more threads do not help and fewer are not enough."""
        return not (self.tried or self._aside or self._up or self._down)

    def limit(self, most: int) -> None:
        """Set another maximum of threads; if the old one limited the search, try more."""
        if most > self.most <= self.kept:
            self._up = self._doubling = True
            self._rest = 0
        self.most = most
        if self.tried > most:
            self.tried = 0
        if self._aside is not None and self._aside.threads > most:
            self._aside = None
        if self.kept > most:
            self.kept, self.tried = most, 0
            self._reference = self._top = self._aside = None
            self._drifted = False

    def decide(self, measure: Measure, left: int) -> bool:
        """Evaluate ``measure`` of the target; ``left``: chunks left to hand out. True: begin a new one."""
        if self.tried:
            if self._aside is not None:
                measure.absorb(self._aside)
                self._aside = None
            return self._judge(measure, left)
        reference = self._reference
        if self._aside is not None and reference is not None:
            if measure.chunks < self._aside.chunks:
                return False
            if self._changed(measure, reference):
                self._aside = None
            else:
                reference.absorb(measure)
                self.tried = self._aside.threads
            return True
        if reference is None or (self._rest <= 0 and not self._drifted):
            if measure.chunks < (1 if reference is None else 2) * max(measure.threads, _FEW):
                return False
            self._note(measure)
            if reference is None or not self._changed(measure, reference):
                self._reference = measure  # as recent as possible for a trial of another number
                self._choose(left)
            return True
        if measure.chunks < 4 * max(measure.threads, _FEW):
            return False
        self._note(measure)
        self._watch(measure, reference)
        return True

    def _note(self, measure: Measure) -> None:
        self._noise += (max(measure.variance, _LEAST_NOISE) - self._noise) / 4

    def _error(self, one: Measure, other: Measure) -> float:
        """The standard error of the logarithm of the ratio of their rates."""
        return sqrt(max(self._noise, one.variance) * (1 / one.chunks + 1 / other.chunks))

    def _judge(self, measure: Measure, left: int) -> bool:
        """Whether the number on trial is better than the kept one."""
        reference = self._reference
        assert reference is not None
        top = self._top or reference
        if measure.chunks < max(measure.threads, _FEW // 2, self._check_at):
            return False
        up = measure.threads > reference.threads
        if up:
            surplus = log(measure.rate / reference.rate) - GAIN
        else:
            surplus = log(measure.rate / top.rate) + min(LOSS, _SLOPE * log(top.threads / measure.threads))
        sure = abs(surplus) >= _SURE * self._error(measure, reference)
        if not sure and measure.chunks < _LONGEST * max(measure.threads, _FEW):
            # Evaluating after every chunk would sooner or later find a difference by chance.
            self._check_at = 2 * measure.chunks
            if measure.chunks < 2 * reference.chunks:
                return False
            self._aside, self.tried = measure, 0
            return True
        self._note(measure)
        better = surplus >= 0
        if up and not better:
            self._up = False
        elif up or not better:
            fewer = reference if up else measure
            self._too_few = max(self._too_few, fewer.threads)
            if fewer.each > self._best_each:
                self._best_each, self._best_error = fewer.each, self._error(measure, reference)
        if better:
            self.kept, self._reference = measure.threads, measure
            self._top = None if up else top
            self._doubling |= up
        if not up:
            self._rests_due = 1 if better else min(2 * self._rests_due, _RESTS_MOST)
        if better:
            self._choose(left)
        else:
            self.tried, self._rest = 0, 0
        return True

    def _choose(self, left: int) -> None:
        """Choose the next number to measure: another one, or the kept one for a while."""
        self.tried = self._more(left) or self._fewer(left)
        self._check_at = 0
        if not self.tried:
            self._rest, self._top = _REST, None

    def _more(self, left: int) -> int:
        """A larger number to try, or 0."""
        threads = min(self.kept + (self.kept if self._doubling else max(1, self.kept // 4)), self.most)
        self._up = self._up and threads > self.kept
        return threads if self._up and left >= _ENOUGH * threads else 0

    def _fewer(self, left: int) -> int:
        """A smaller number to try, or 0."""
        top, least = self._top or self._reference, self._too_few + 1
        assert top is not None
        if self._best_each:
            # This many threads reach the same speed if each is as fast as among few; fewer cannot. Speeds
            # are uncertain, so prefer to try a smaller number.
            least = max(least, ceil((1 - LOSS - self._best_error) * top.rate / self._best_each))
        self._down = self._down and least < self.kept and self.kept > _CLOSE * self._too_few
        if not self._down:
            return 0
        if not self._too_few:
            threads = self.kept - max(1, self.kept // (2 if self._doubling else 4))
        elif least > self._too_few + 1:
            threads = least
        else:
            threads = min(max(round(sqrt(self._too_few * self.kept)), least), self.kept - 1)
        # The trial costs about this many chunks.
        cost = max(_FEW // 2, 2 * (self.kept - threads))
        return threads if left >= _WORTH * cost else 0

    def _changed(self, measure: Measure, reference: Measure) -> bool:
        """Whether the kept number has another speed than before; the second time in a row restarts the search."""
        change = abs(log(measure.rate / reference.rate)) > max(_DRIFT, 3 * self._error(measure, reference))
        again, self._drifted = self._drifted, change
        if change and again:
            self._forget()
        return change

    def _watch(self, measure: Measure, reference: Measure) -> None:
        """The kept number was measured again: check for a changed speed, or the time for a trial."""
        if self._changed(measure, reference):
            return
        self._rest -= 1
        if self._rest == 0:
            # By small steps now.
            self._up, self._doubling = True, False
            self._rests += 1
            if self._rests >= self._rests_due:
                self._down, self._rests = True, 0
                self._too_few, self._best_each = 0, 0.0
