"""Terminals on which a program can draw."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

PLAIN: Final = ("", "dumb", "unknown")
"""Values of TERM for a terminal that only takes lines."""


def can_draw(environment: Mapping[str, str]) -> bool:
    """Whether standard error is such a terminal."""
    return sys.stderr.isatty() and environment.get("TERM", "").lower() not in PLAIN
