"""Error messages of the command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import Refused

if TYPE_CHECKING:
    from ktaskfs.errors import KtaskfsError

SHOWN: Final = 400
"""Maximum characters of a refused command: more would move the reason off the screen."""


def complain(error: KtaskfsError, place: str = "") -> None:
    """Print it on standard error, with its ``place``, and the refused command with a caret below."""
    say(f"{f'{place}: ' if place else ''}{error.message}")
    if isinstance(error, Refused):
        for line in filter(None, _excerpt(error.command, error.caret)):
            print(f"  {line}", file=sys.stderr, flush=True)


def _excerpt(command: str, caret: str) -> tuple[str, str]:
    """The part of a long command that the ``caret`` is below, and the caret below that part."""
    if len(command) <= SHOWN:
        return command, caret
    at = len(caret) - len(caret.lstrip())
    begin = max(0, min(at - SHOWN // 2, len(command) - SHOWN))
    before, after = "..." if begin else "", "..." if begin + SHOWN < len(command) else ""
    return f"{before}{command[begin : begin + SHOWN]}{after}", " " * len(before) + caret[begin : begin + SHOWN]


def say(words: str) -> None:
    """Print a line on standard error. Escapes control characters in it, because a name of a file may have some."""
    from ktaskfs.units import printable

    print(f"ktaskfs: {printable(words)}", file=sys.stderr, flush=True)
