"""The rate limit: one token bucket that all threads of a task share."""

from __future__ import annotations

from typing import Final

_BURST_SECONDS: Final = 0.1
"""Unused allowance is kept for this long, so that a thread that wakes late does not lower the rate."""
_UNITS_MAX: Final = 1 << 1000
"""A debt that no clock will see paid; more would not fit a float."""
_SLICE_SECONDS: Final = 0.25
"""The time that one chunk may be worth, so that a limit acts evenly and a change of it soon."""


class TokenBucket:
    """Allowance in units, refilled at a rate, spent by chunks. Not thread-safe: its owner holds a lock.

    A chunk may start when there is no debt and then runs into debt by its size, so a chunk larger than the bucket
    still runs, and the mean rate is right. A debt is paid off at the rate that it was made at, or a higher one: what
    was granted under a high rate never has to be waited for under a low one.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        """Units in a second, None: no limit. Changed by ``set_rate`` only."""
        self._tokens = 0.0
        self._granted: float = 0.0  # the rate at which the last chunk was allowed
        self._at_ns = 0

    def set_rate(self, rate: float | None, now_ns: int) -> None:
        """Allow ``rate`` units in a second from now on; None: no limit, and nothing is owed any more."""
        self._refill(now_ns)
        if rate is None or self.rate is None:
            self._tokens = 0.0
        self.rate = rate
        self._at_ns = now_ns

    def delay(self, now_ns: int) -> float:
        """Seconds until a chunk may start; 0.0: now."""
        self._refill(now_ns)
        if self.rate is None or self._tokens >= 0:
            return 0.0
        return -self._tokens / max(self.rate, self._granted)

    def spend(self, units: int) -> None:
        """A chunk of ``units`` units starts."""
        if self.rate is not None:
            self._tokens -= min(units, _UNITS_MAX)
            self._granted = self.rate

    def chunk_limit(self, chunk: int) -> int:
        """``chunk``, or what the rate allows in a quarter of a second if that is less."""
        return chunk if self.rate is None else min(chunk, int(self.rate * _SLICE_SECONDS))

    def _refill(self, now_ns: int) -> None:
        if self.rate is None:
            return
        seconds = (now_ns - self._at_ns) / 1e9
        self._at_ns = now_ns
        if self._tokens < 0:
            speed = max(self.rate, self._granted)
            paying = min(seconds, -self._tokens / speed)
            self._tokens += speed * paying
            seconds -= paying
            if seconds <= 0:
                return
            self._tokens = 0.0
        self._tokens = min(self._tokens + self.rate * seconds, self.rate * _BURST_SECONDS)
