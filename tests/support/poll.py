"""Waiting for a condition, never for a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE: Final = 30.0
"""Seconds; far beyond what anything here takes, so that only what hangs meets it."""


def until(condition: Callable[[], bool], what: str, *, deadline: float = DEADLINE) -> None:
    """Return as soon as ``condition()`` is true; AssertionError saying ``what`` never came true."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:g} s: {what}")
        time.sleep(0.002)
