"""Threads for the event loop, and limits on those that may hang, for each user apart."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple
from weakref import WeakValueDictionary

import trio

from ktaskfs.errors import NO_MORE_PROCESSES, KtaskfsError
from ktaskfs.quota import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class NoThread(KtaskfsError):
    """The daemon cannot start a thread: a limit on processes (EAGAIN)."""

    default_errno = errno.EAGAIN


async def in_thread(run: Callable[[*Ts], T], *args: *Ts, limiter: trio.CapacityLimiter | None = None) -> T:
    """The result of ``run(*args)`` in a thread, which is abandoned if this is cancelled. ``limiter``: trio's if None.

    Raises NoThread, and the errors of ``run``.
    """
    began = False

    def noted() -> T:
        nonlocal began
        began = True
        return run(*args)

    try:
        return await trio.to_thread.run_sync(noted, abandon_on_cancel=True, limiter=limiter)
    except RuntimeError as error:
        if began:
            raise
        raise NoThread(f"the daemon cannot start a thread: {NO_MORE_PROCESSES}") from error


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
