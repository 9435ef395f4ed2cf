"""Error messages of the command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ktaskfs.errors import Refused

if TYPE_CHECKING:
    from ktaskfs.errors import KtaskfsError


def complain(error: KtaskfsError, place: str = "") -> None:
    """Print it on standard error, with its ``place``, and the refused command with a caret below."""
    print(f"ktaskfs: {f'{place}: ' if place else ''}{error.message}", file=sys.stderr, flush=True)
    if isinstance(error, Refused):
        for line in filter(None, (error.command, error.caret)):
            print(f"  {line}", file=sys.stderr, flush=True)
