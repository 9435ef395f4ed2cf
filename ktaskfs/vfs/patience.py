"""Patience: the waiting time of stream reads, shared among users."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

OF_ONE_MAX: Final = 1024
"""Maximum waiting reads of one user. It is large, because a thread whose wait was ended can read again at once."""
IN_ALL_MAX: Final = 1152
"""Maximum waiting reads of all users: one of each stream, and some whose readers were killed. Each holds a buffer."""


class Patience:
    """Ends the oldest wait of the user with the most if there are too many. Root's waits are not ended."""

    def __init__(self, of_one: int = OF_ONE_MAX, in_all: int = IN_ALL_MAX) -> None:
        self._of_one = of_one
        self._in_all = in_all
        self._waits: dict[int, dict[trio.CancelScope, None]] = {}
        """By uid, in order of their beginnings."""
        self._total = 0

    @contextlib.contextmanager
    def wait(self, uid: int, seconds: float) -> Iterator[trio.CancelScope]:
        """A scope that is cancelled after ``seconds``, or earlier if there are too many."""
        scope = trio.CancelScope(deadline=trio.current_time() + seconds)
        self._waits.setdefault(uid, {})[scope] = None
        self._total += 1
        if uid:
            self._share_out(uid)
        try:
            with scope:
                yield scope
        finally:
            self._forget(uid, scope)

    def _share_out(self, uid: int) -> None:
        if len(self._waits[uid]) <= self._of_one:
            if self._total <= self._in_all:
                return
            uid = max((each for each in self._waits if each), key=lambda each: len(self._waits[each]))
        oldest = next(iter(self._waits[uid]))
        oldest.cancel()
        self._forget(uid, oldest)

    def _forget(self, uid: int, scope: trio.CancelScope) -> None:
        waits = self._waits.get(uid, {})
        if scope in waits:
            del waits[scope]
            self._total -= 1
            if not waits:
                del self._waits[uid]
