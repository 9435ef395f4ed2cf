"""Time, as the scheduler sees it: replaceable, so that tests need not wait."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from threading import Condition


class Clock(Protocol):
    """A monotonic clock, and the only way in which a thread of a task ever waits."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since some fixed moment."""

    def wait(self, changed: Condition, seconds: float | None) -> None:
        """Wait until ``changed`` (held by the caller) is notified, or ``seconds`` have passed; it may wake early."""


class SystemClock:
    """The machine's own clock."""

    monotonic_ns = staticmethod(time.monotonic_ns)

    def wait(self, changed: Condition, seconds: float | None) -> None:
        changed.wait(seconds)
