"""The scheduler's clock. Tests replace it to avoid waiting."""

from __future__ import annotations

import time
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from threading import Lock


class Clock(Protocol):
    """A monotonic clock, and the only way in which a thread of a task ever waits."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since some fixed moment."""

    def wait(self, gate: Lock, seconds: float | None) -> None:
        """Acquire ``gate``, which another thread releases, or return after ``seconds``; it may return early."""


class SystemClock:
    """The machine's own clock."""

    monotonic_ns = staticmethod(time.monotonic_ns)

    def wait(self, gate: Lock, seconds: float | None) -> None:
        gate.acquire(timeout=-1 if seconds is None else min(seconds, TIMEOUT_MAX))
