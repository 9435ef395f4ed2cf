"""How long the daemon waits for processes that may stall."""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "KTASKFS_PATIENCE"
"""Seconds, in the environment of a daemon: tests on a busy machine then see each refusal at the write, and what killed
a worker."""


def patience(seconds: float) -> float:
    """``seconds``, or those of VARIABLE."""
    return float(os.environ.get(VARIABLE, seconds))
