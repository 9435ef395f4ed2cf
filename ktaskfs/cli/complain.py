"""Error messages of the command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ktaskfs.errors import Refused

if TYPE_CHECKING:
    from ktaskfs.errors import KtaskfsError


def complain(error: KtaskfsError, place: str = "") -> None:
    """Print it on standard error, with its ``place``, and the refused command with a caret below."""
    say(f"{f'{place}: ' if place else ''}{error.message}")
    if isinstance(error, Refused):
        for line in filter(None, (error.command, error.caret)):
            print(f"  {line}", file=sys.stderr, flush=True)


def say(words: str) -> None:
    """Print a line on standard error. Escapes control characters in it, because a name of a file may have some."""
    from ktaskfs.units import printable

    print(f"ktaskfs: {printable(words)}", file=sys.stderr, flush=True)
