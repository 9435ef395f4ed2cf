"""Limits on threads that may hang, for each user apart."""

from __future__ import annotations

from weakref import WeakValueDictionary

import trio

from ktaskfs.quota import ROOT


class UserThreads:
    """At most ``of_one`` threads for each user and ``of_root`` for root, so that a user whose processes hang delays
    nobody else. An abandoned thread counts until its end."""

    def __init__(self, *, of_one: int, of_root: int) -> None:
        self._of_one = of_one
        self._of_root = of_root
        self._limiters: WeakValueDictionary[int, trio.CapacityLimiter] = WeakValueDictionary()
        """By uid, while that user has a thread."""

    def of(self, user: int) -> trio.CapacityLimiter:
        """The limiter of the threads for ``user``."""
        return self._limiters.setdefault(user, trio.CapacityLimiter(self._of_root if user == ROOT else self._of_one))
