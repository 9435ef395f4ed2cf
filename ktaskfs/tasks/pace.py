"""How fast a task works: a moving average, which all who show a speed share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ktaskfs.progress import Snapshot

REMEMBERED: Final = 10.0
"""Seconds after which work counts for 1/e of what it did. A chunk under a rate limit can take some seconds (a gigantic
page, ``chunk=``): the average is to show the limit then, and yet follow a change of it."""


class Pace:
    """The speed of one task, averaged over the last REMEMBERED seconds or so of its run.

    Work is weighed by its age, exp(-age / REMEMBERED). Between two looks it counts as even, so nothing has to look at
    regular times: a task that nobody looks at costs nothing, and many readers do not disturb each other.
    """

    __slots__ = ("_at_ns", "_done", "_run", "_weighed")

    def __init__(self) -> None:
        self._run = 0
        self._at_ns = 0
        self._done = 0
        self._weighed = 0.0

    def speed(self, snapshot: Snapshot, now_ns: int) -> float:
        """Units a second at ``now_ns`` (CLOCK_BOOTTIME); over the whole run once that has ended, 0 before it began."""
        begun, done = snapshot.started_ns, snapshot.done
        if not begun:
            return 0.0
        if snapshot.ended_ns:
            return 1e9 * done / (snapshot.ended_ns - begun) if snapshot.ended_ns > begun else 0.0
        if begun != self._run or done < self._done:  # another run, or its work is taken back
            self._run, self._at_ns, self._done, self._weighed = begun, begun, 0, 0.0
        seconds = (now_ns - self._at_ns) / 1e9
        if seconds > 0:
            kept = math.exp(-seconds / REMEMBERED)
            self._weighed = kept * self._weighed + (1 - kept) * (done - self._done) / seconds
            self._at_ns, self._done = now_ns, done
        # The weights of a young run do not add up to 1. Its beginning is the worker's word, and may lie in the future.
        weights = -math.expm1(-(self._at_ns - begun) / 1e9 / REMEMBERED)
        return self._weighed / weights if weights > 0 else 0.0
