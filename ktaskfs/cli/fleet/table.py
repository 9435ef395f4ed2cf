"""One live table of all hosts on a terminal: the slowest on top, what has ended folded below."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from ktaskfs.cli import phrases
from ktaskfs.cli.fleet.hosts import FINE, percent
from ktaskfs.cli.fleet.summary import course, show_summary, summary_line
from ktaskfs.cli.live import BAR_WIDTH, NAME_WIDTH, SHORT

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from ktaskfs.cli.fleet.hosts import Fleet, Host
    from ktaskfs.cli.follow import Standing

EVERY: Final = 1.0
"""Seconds between two pictures."""
ROWS_MOST: Final = 24
"""Hosts at work that have a line."""
SHARE: Final = 0.01
"""Of the time, to draw: one picture takes as long as hundreds of lines from hosts."""
GROUPS_MOST: Final = 8
"""Ways to end that are shown while others are at work."""


STYLES: Final = {"done": "green", "planned": "green", "failed": "red", "interrupted": "red", "cancelled": "yellow"}


def grid(*, wide: bool) -> Table:
    """A table for rows, with a bar in each if it is ``wide``."""
    return Table.grid(
        Column(no_wrap=True, max_width=NAME_WIDTH, overflow="ellipsis"),
        *(Column(width=BAR_WIDTH) for _ in range(wide)),
        *(Column(no_wrap=True, justify="right", overflow="ellipsis") for _ in range(4)),
        Column(no_wrap=True),
        padding=(0, 1),
    )


def row(standing: Standing, *, wide: bool) -> list[Text | ProgressBar]:
    """The cells of a task."""
    state = "no daemon" if standing.stale else standing.state
    cells: list[Text | ProgressBar] = [Text(standing.name)]
    if wide:
        cells.append(ProgressBar(total=100, completed=percent(standing), width=BAR_WIDTH))
    words = (phrases.percent(standing), phrases.progress(standing), phrases.speed(standing), phrases.time(standing))
    return [*cells, *map(Text, words), Text(state, style=STYLES.get(standing.state, ""))]


class LiveTable:
    """The table on standard error."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = Console(stderr=True, highlight=False) if console is None else console
        self._clock = clock
        self._next = 0.0
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)

    def heard(self, host: Host, line: bytes) -> None:
        pass

    def ended(self, host: Host) -> None:
        pass

    def show(self, fleet: Fleet) -> None:
        now = self._clock()
        if now >= self._next:
            begun = time.thread_time()
            self._live.start()
            self._live.update(self.picture(fleet), refresh=True)
            self._next = now + max(EVERY, (time.thread_time() - begun) / SHARE)

    def note(self, words: str) -> None:
        self._console.print(words, markup=False)

    def close(self, fleet: Fleet) -> None:
        self._live.update(Text(""), refresh=True)
        self._live.stop()
        show_summary(fleet)

    def picture(self, fleet: Fleet) -> RenderableType:
        """What fits: the hosts at work from the slowest on, how the others have ended, and a line on all."""
        ended = fleet.groups()
        ended, folded = ended[:GROUPS_MOST], ended[GROUPS_MOST:]
        below = [
            Text(summary_line(each), style="" if each.state in FINE else "red", no_wrap=True, overflow="ellipsis")
            for each in ended
        ]
        if folded:
            below.append(Text(f"{sum(len(each.hosts) for each in folded)} more have ended in other ways"))
        below.append(Text(course(fleet), style="bold", no_wrap=True, overflow="ellipsis"))
        most = max(1, min(ROWS_MOST, self._console.height - 2 - len(below)))  # the cursor has the last line
        at_work = sorted(
            (host.standing for host in fleet if host.tasks and not host.has_ended),
            key=lambda each: (percent(each), each.name),
        )
        wide = self._console.width >= SHORT
        table = grid(wide=wide)
        for each in at_work[:most]:
            table.add_row(*row(each, wide=wide))
        if hidden := at_work[most:]:
            below.insert(0, Text(f"{len(hidden)} more from {percent(hidden[0]):.1f}% on", style="dim"))
        return Group(table, *below)
