"""Change: a condition for poll(2), by the rule of kernfs_generic_poll (fs/kernfs/file.c)."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

READABLE: Final = select.POLLIN | select.POLLRDNORM
WRITABLE: Final = select.POLLOUT | select.POLLWRNORM
CHANGED: Final = select.POLLPRI | select.POLLERR

INTERVAL: Final = 0.25
"""Seconds between two checks of a Watcher: fast enough for people, without waking a program for each chunk."""


class Change:
    """Counts changes, and wakes the waiters at the next one. Not thread-safe: for the event loop."""

    __slots__ = ("_count", "_wakes")

    def __init__(self) -> None:
        self._count = 0
        self._wakes: dict[object, Callable[[], None]] = {}

    @property
    def count(self) -> int:
        """How many changes there were."""
        return self._count

    def notify(self) -> None:
        """Count a change, and wake every waiter once."""
        self._count += 1
        self._wake()

    def _wake(self) -> None:
        wakes, self._wakes = self._wakes, {}
        for wake in wakes.values():
            wake()

    def await_next(self, waiter: object, wake: Callable[[], None]) -> None:
        """Call ``wake`` at the next change; it replaces an earlier one of the same ``waiter``."""
        self._wakes[waiter] = wake

    def forget(self, waiter: object) -> None:
        """Drop the wake of ``waiter``, if it has one."""
        self._wakes.pop(waiter, None)

    @property
    def waiting(self) -> int:
        """The number of waiters."""
        return len(self._wakes)


class WatchedChange(Change):
    """A change that must be polled.

    ``mark`` returns a value that differs after each change, or None while nothing can change. It is called at each read
    or poll, and by ``watcher`` while somebody waits. ``notify`` works as in Change.
    """

    __slots__ = ("_mark", "_seen", "_watcher", "_woken_at")

    def __init__(self, mark: Callable[[], object], watcher: Watcher) -> None:
        super().__init__()
        self._mark = mark
        self._watcher = watcher
        self._seen: object = None
        self._woken_at = 0

    @property
    def count(self) -> int:
        self._look()
        return self._count

    def _look(self) -> bool:
        """Count a change if there was one. Returns whether another may follow without a ``notify``."""
        mark = self._mark()
        if mark != self._seen:
            self._seen = mark
            self._count += 1
        return mark is not None

    def _wake(self) -> None:
        self._woken_at = self._count
        super()._wake()

    def await_next(self, waiter: object, wake: Callable[[], None]) -> None:
        super().await_next(waiter, wake)
        self._watcher.watch(self)

    def watched(self) -> bool:
        """Wake the waiters after a change since the last wake. Returns whether to check again later."""
        moves = self._look()
        if self._count != self._woken_at:
            self._wake()
        return moves


class Watcher:
    """Checks each WatchedChange with a waiter every ``interval`` seconds, and sleeps while there is none."""

    __slots__ = ("_interval", "_nursery", "_watched")

    def __init__(self, nursery: trio.Nursery, interval: float = INTERVAL) -> None:
        self._nursery = nursery
        self._interval = interval
        self._watched: dict[WatchedChange, None] = {}

    @property
    def watching(self) -> int:
        """The number of watched changes."""
        return len(self._watched)

    def watch(self, change: WatchedChange) -> None:
        """Watch ``change``, until it has no waiter or cannot change."""
        if not self._watched:
            self._nursery.start_soon(self._run)
        self._watched[change] = None

    async def _run(self) -> None:
        while self._watched:
            await trio.sleep(self._interval)
            for change in list(self._watched):
                if not (change.waiting and change.watched()):
                    del self._watched[change]
