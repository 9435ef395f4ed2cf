"""How much Python runs: a measure of work that is the same on every machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


class Lines:
    """Counts the lines of Python that this thread runs, in frames that are entered or resumed while it counts."""

    def __init__(self) -> None:
        self.count = 0

    def start(self) -> None:
        sys.settrace(self._trace)

    def stop(self) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.count += 1
        return self._trace


def lines_of(function: Callable[[], object]) -> int:
    """The lines that a call of ``function`` runs."""
    lines = Lines()
    lines.start()
    try:
        function()
    finally:
        lines.stop()
    return lines.count
