"""Sleeps that end on time: the kernel may wake a thread up to its timer slack, 50 us by default, too late."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ktaskfs.host import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

PR_SET_TIMERSLACK: Final = 29
PR_GET_TIMERSLACK: Final = 30


@contextmanager
def exact_sleep() -> Iterator[None]:
    """Wake this thread, and those that are started inside, at once when their time has come (prctl(2))."""
    slack = syscalls.prctl(PR_GET_TIMERSLACK)
    syscalls.prctl(PR_SET_TIMERSLACK, 1)
    try:
        yield
    finally:
        syscalls.prctl(PR_SET_TIMERSLACK, slack)
