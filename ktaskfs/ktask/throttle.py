"""The rate limit: one token bucket that all threads of a task share."""

from __future__ import annotations

from typing import Final

_BURST_SECONDS: Final = 0.1
"""Seconds of unused allowance that are kept, so that a late wake-up does not lower the rate."""
_UNITS_MAX: Final = 1 << 1000
"""Maximum units in one debt; more would not fit a float."""
_SLICE_SECONDS: Final = 0.25
"""Maximum seconds of one chunk at the rate, so that work is even and a change of the rate acts soon."""


class TokenBucket:
    """Allowance in units, refilled at a rate, spent by chunks. Not thread-safe: its owner holds a lock.

    A chunk may start when there is no debt, and then makes a debt of its size: a chunk larger than the bucket still
    runs, and the mean rate is right. A debt is paid off at the rate at which it was made, or the present one if that is
    higher: after a change to a low rate nobody waits at the low rate for units that the high rate granted.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        """Units in a second, None: no limit. Changed by ``set_rate`` only."""
        self._tokens = 0.0
        self._granted: float = 0.0  # the rate at which the last chunk was allowed
        self._at_ns = 0

    def set_rate(self, rate: float | None, now_ns: int) -> None:
        """Allow ``rate`` units in a second from now on; None: no limit, and any debt is forgotten."""
        self._refill(now_ns)
        if rate is None or self.rate is None:
            self._tokens = 0.0
        self.rate = rate
        self._at_ns = now_ns

    def delay(self, now_ns: int) -> float:
        """Seconds until a chunk may start; 0.0: it may start now."""
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
        """``chunk``, or the units that the rate allows in a quarter of a second if they are fewer."""
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
