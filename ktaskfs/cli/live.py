"""A live line for each task on a terminal.

It is drawn here: to import rich takes as much CPU as all else of a short command.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.cli import phrases

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TextIO

    from ktaskfs.cli.follow import Standing

LIVE_EVERY: Final = 0.25
"""Seconds between two looks."""
NAME_WIDTH: Final = 24
NAME_LEAST: Final = 6
"""Characters of a name that are left where the terminal is narrow."""
BAR_WIDTH: Final = 20
SHORT: Final = 60
"""Columns of a terminal below which there is no bar."""
GREEN, RED, YELLOW, MAGENTA, DIM = 32, 31, 33, 35, 2
STYLES: Final = {"done": GREEN, "planned": GREEN, "failed": RED, "interrupted": RED, "cancelled": YELLOW}
HIDE_CURSOR: Final = "\x1b[?25l"
SHOW_CURSOR: Final = "\x1b[?25h"
ERASE_LINE: Final = "\x1b[K"
ERASE_BELOW: Final = "\x1b[J"


class Signs(NamedTuple):
    """What is drawn with."""

    bar: str
    half: str
    rest_half: str
    ellipsis: str

    @classmethod
    def of(cls, encoding: str) -> Signs:
        """Those that the terminal's encoding has."""
        signs = cls(
            "\N{BOX DRAWINGS HEAVY HORIZONTAL}", "\N{BOX DRAWINGS HEAVY LEFT}", "\N{BOX DRAWINGS HEAVY RIGHT}", "…"
        )
        try:
            "".join(signs).encode(encoding)
        except UnicodeEncodeError:
            return cls("#", "#", "-", "~")
        return signs


class LiveReport:
    """Bars on standard error, drawn anew by each ``show``. Names and figures are ASCII: a character takes a column."""

    every = LIVE_EVERY
    results = True

    def __init__(
        self,
        out: TextIO | None = None,
        size: Callable[[], tuple[int, int]] = lambda: os.get_terminal_size(2),
        *,
        coloured: bool | None = None,
    ) -> None:
        """``size`` gives the columns and lines of the terminal."""
        self._out = sys.stderr if out is None else out
        self._size = size
        self._coloured = not os.environ.get("NO_COLOR") if coloured is None else coloured
        self._signs = Signs.of(self._out.encoding or "ascii")
        self._drawn: list[str] = []
        self._write(HIDE_CURSOR)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def show(self, standings: Sequence[Standing]) -> None:
        lines = self.lines(standings)
        self._write(self._to_the_top() + "\n".join(f"{line}{ERASE_LINE}" for line in lines) + ERASE_BELOW)
        self._drawn = lines

    def _to_the_top(self) -> str:
        """Moves the cursor from the end of what is drawn to its beginning."""
        above = len(self._drawn) - 1
        return f"\r\x1b[{above}A" if above > 0 else "\r"

    def note(self, words: str) -> None:
        self._write(self._to_the_top() + ERASE_BELOW + words + "\n" + "\n".join(self._drawn))

    def close(self) -> None:
        self._write("\n" * bool(self._drawn) + SHOW_CURSOR)
        self._drawn = []

    def lines(self, standings: Sequence[Standing]) -> list[str]:
        """One line for each task, as far as the terminal is high enough."""
        columns, height = self._size()
        most = max(1, height - 1)
        # At work first, and then what went wrong: those are of interest where there is no room for all.
        ranked = sorted(standings, key=lambda each: (each.has_ended, each.state in ("done", "planned")))
        names = {each.name for each in (ranked if len(ranked) <= most else ranked[: most - 1])}
        shown = [each for each in standings if each.name in names]
        found = self._rows(shown, columns)
        if hidden := [each for each in standings if each.name not in names]:
            ended = sum(each.has_ended for each in hidden)
            found.append(self._styled(self._cut(f"{len(hidden)} more, {ended} ended", columns), DIM))
        return found

    def _rows(self, standings: Sequence[Standing], columns: int) -> list[str]:
        cells = [_words(each) for each in standings]
        widths = [max((len(row[column]) for row in cells), default=0) for column in range(4)]
        states = ["no daemon" if each.stale else each.state for each in standings]
        bar = BAR_WIDTH + 1 if columns >= SHORT else 0
        others = bar + sum(width + 1 for width in widths) + max(map(len, states), default=0) + 1
        longest = max((len(each.name) for each in standings), default=0)
        name_width = max(min(longest, NAME_WIDTH, columns - others), min(longest, NAME_LEAST))
        rows = []
        for each, row, state in zip(standings, cells, states, strict=True):
            name = self._cut(each.name, name_width).ljust(name_width)
            figures = "".join(f"{cell:>{width}} " for cell, width in zip(row, widths, strict=True))
            left = columns - name_width - 1 - bar
            text = self._cut(f"{figures}{state}", left)
            if text.endswith(state) and (style := STYLES.get(each.state)):
                text = text.removesuffix(state) + self._styled(state, style)
            rows.append(f"{name} {f'{self._bar(each)} ' if bar else ''}{text}")
        return rows

    def _bar(self, standing: Standing) -> str:
        part = min(100.0, standing.figures.get("percent") or 0.0)
        halves = int(part * 2 * BAR_WIDTH / 100)
        full = self._signs.bar * (halves // 2) + self._signs.half * (halves % 2)
        left = BAR_WIDTH - len(full)
        if not self._coloured:
            return full + " " * left
        begins = self._signs.rest_half if left and halves and not halves % 2 else self._signs.bar
        rest = (begins + self._signs.bar * (left - 1)) if left else ""
        return self._styled(full, GREEN if part >= 100 else MAGENTA) + self._styled(rest, DIM)

    def _styled(self, text: str, style: int) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self._coloured and text else text

    def _cut(self, text: str, width: int) -> str:
        return text if len(text) <= width else text[: max(0, width - 1)] + self._signs.ellipsis[: max(0, width)]


def _words(standing: Standing) -> tuple[str, str, str, str]:
    """The part that is done, done and total, the speed, and the time that is left, or that it took."""
    return (phrases.percent(standing), phrases.progress(standing), phrases.speed(standing), phrases.time(standing))
