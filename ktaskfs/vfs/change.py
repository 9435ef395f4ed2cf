"""Change: what poll(2) waits for, by the rule of kernfs_generic_poll (fs/kernfs/file.c)."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

READABLE: Final = select.POLLIN | select.POLLRDNORM
WRITABLE: Final = select.POLLOUT | select.POLLWRNORM
CHANGED: Final = select.POLLPRI | select.POLLERR


class Change:
    """Counts the changes of something and wakes those who wait for the next one. For one event loop's thread."""

    __slots__ = ("_wakes", "count")

    def __init__(self) -> None:
        self.count = 0
        self._wakes: dict[object, Callable[[], None]] = {}

    def notify(self) -> None:
        """Count a change and wake everybody who waits, each once."""
        self.count += 1
        wakes, self._wakes = self._wakes, {}
        for wake in wakes.values():
            wake()

    def await_next(self, waiter: object, wake: Callable[[], None]) -> None:
        """Have ``wake`` called at the next change; it replaces an earlier one of the same ``waiter``."""
        self._wakes[waiter] = wake

    def forget(self, waiter: object) -> None:
        """Drop the wake of ``waiter``, if it has one."""
        self._wakes.pop(waiter, None)

    @property
    def waiting(self) -> int:
        """How many will be woken by the next change."""
        return len(self._wakes)
