"""The speed of a task: a moving average, shared by all files that show a speed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ktaskfs.progress import Snapshot

REMEMBERED: Final = 10.0
"""Seconds after which the weight of work falls to 1/e. A chunk under a rate limit can take some seconds (a gigantic
page, ``chunk=``): the average must then show the limit, and still follow a change."""


class Pace:
    """The speed of one task, averaged over the last REMEMBERED seconds or so of its run.

    Work is weighed by its age, exp(-age / REMEMBERED), and counts as even between two reads. So no regular sampling is
    needed: an unread task costs nothing, and many readers do not disturb each other.
    """

    __slots__ = ("_at_ns", "_done", "_run", "_weighed")

    def __init__(self) -> None:
        self._run = 0
        self._at_ns = 0
        self._done = 0
        self._weighed = 0.0

    def speed(self, snapshot: Snapshot, now_ns: int) -> float:
        """Units a second at ``now_ns`` (CLOCK_BOOTTIME); over the whole run after its end, 0 before its start."""
        begun, done = snapshot.started_ns, snapshot.done
        if not begun:
            return 0.0
        if snapshot.ended_ns:
            return 1e9 * done / (snapshot.ended_ns - begun) if snapshot.ended_ns > begun else 0.0
        if begun != self._run or done < self._done:  # another run, or its work was undone
            self._run, self._at_ns, self._done, self._weighed = begun, begun, 0, 0.0
        seconds = (now_ns - self._at_ns) / 1e9
        if seconds > 0:
            kept = math.exp(-seconds / REMEMBERED)
            self._weighed = kept * self._weighed + (1 - kept) * (done - self._done) / seconds
            self._at_ns, self._done = now_ns, done
        # The weights of a young run add up to less than 1. Its start time comes from the worker, and may lie in the
        # future.
        weights = -math.expm1(-(self._at_ns - begun) / 1e9 / REMEMBERED)
        return self._weighed / weights if weights > 0 else 0.0
