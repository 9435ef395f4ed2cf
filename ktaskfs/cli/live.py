"""A live line for each task on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from ktaskfs.cli import phrases

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.cli.follow import Standing

NAME_WIDTH: Final = 24
BAR_WIDTH: Final = 20
WIDE: Final = 80
"""Columns of a terminal below which there is no bar."""
SHORT: Final = 60
"""Columns below which a line has only the name, the percentage and the state."""
STYLES: Final = {"done": "green", "planned": "green", "failed": "red", "interrupted": "red", "cancelled": "yellow"}


def grid(width: int) -> Table:
    """A table for rows on a terminal of ``width`` columns. Only the names are shortened, as long as that is enough."""
    return Table.grid(
        Column(max_width=NAME_WIDTH),
        *(Column(width=BAR_WIDTH) for _ in range(width >= WIDE)),
        *(Column(no_wrap=True, justify="right", overflow="ellipsis") for _ in range(4 if width >= SHORT else 1)),
        Column(no_wrap=True),
        padding=(0, 1),
    )


def row(standing: Standing, width: int) -> list[Text | ProgressBar]:
    """The cells of a task."""
    part = standing.figures.get("percent") or 0.0
    state = "no daemon" if standing.stale else standing.state
    cells: list[Text | ProgressBar] = [Text(standing.name, no_wrap=True, overflow="ellipsis")]
    if width >= WIDE:
        cells.append(ProgressBar(total=100, completed=part, width=BAR_WIDTH))
    words = [phrases.percent_text(standing)]
    if width >= SHORT:
        left = phrases.finish_text(standing)
        if standing.has_ended and standing.figures.get("elapsed_usec"):
            left = phrases.duration(standing.figures["elapsed_usec"] / 1e6)
        words += [phrases.progress_text(standing), phrases.speed_text(standing), left]
    return [*cells, *map(Text, words), Text(state, style=STYLES.get(standing.state, ""))]


class LineConsole(Console):
    """Standard error. rich hides the cursor while it draws lines; after a kill or ^Z it would stay hidden."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False)

    def show_cursor(self, show: bool = True) -> bool:
        """Called by rich, and does nothing."""
        return False


class LiveReport:
    """Bars on standard error, drawn anew by each ``show``."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = LineConsole() if console is None else console
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._live.start()

    def show(self, standings: Sequence[Standing]) -> None:
        self._live.update(self.table(standings), refresh=True)

    def note(self, words: str) -> None:
        self._console.print(words, markup=False)

    def close(self) -> None:
        self._live.stop()

    def table(self, standings: Sequence[Standing]) -> Table:
        """One row for each task, as far as the console is high enough."""
        most = max(1, self._console.height - 1)  # the cursor has the last line
        width = self._console.width
        table = grid(width)
        # Running tasks first, then failed ones, because there may not be room for all.
        ranked = sorted(standings, key=lambda each: (each.has_ended, each.state in ("done", "planned")))
        shown = {each.name for each in (ranked if len(ranked) <= most else ranked[: most - 1])}
        for each in standings:
            if each.name in shown:
                table.add_row(*row(each, width))
        if hidden := [each for each in standings if each.name not in shown]:
            ended = sum(each.has_ended for each in hidden)
            table.add_row(Text(f"{len(hidden)} more, {ended} ended", style="dim", no_wrap=True, overflow="ellipsis"))
        return table
