"""Waiting for a condition, never for a time."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE: Final = 60.0 * float(os.environ.get("KTASKFS_TEST_PATIENCE", "1"))
"""Seconds; far beyond what anything here takes where others work too, so that only what hangs meets it.

On a machine whose processors are emulated everything takes many times as long: it sets KTASKFS_TEST_PATIENCE.
"""

LONGEST_PAUSE: Final = 0.016
"""Seconds between two checks. Many conditions start a program, which takes CPU time from the awaited one."""


def until(condition: Callable[[], bool], what: str, *, deadline: float = DEADLINE) -> None:
    """Return as soon as ``condition()`` is true; AssertionError saying ``what`` never came true."""
    end, pause = time.monotonic() + deadline, 0.002
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:g} s: {what}")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
