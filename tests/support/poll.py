"""Waiting for a condition, never for a time."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE: Final = 30.0 * float(os.environ.get("KTASKFS_TEST_PATIENCE", "1"))
"""Seconds; far beyond what anything here takes, so that only what hangs meets it.

On a machine whose processors are emulated everything takes many times as long: it sets KTASKFS_TEST_PATIENCE.
"""


def until(condition: Callable[[], bool], what: str, *, deadline: float = DEADLINE) -> None:
    """Return as soon as ``condition()`` is true; AssertionError saying ``what`` never came true."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:g} s: {what}")
        time.sleep(0.002)
