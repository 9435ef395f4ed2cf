"""A live table of all hosts on a terminal: the slowest on top, ended ones folded below."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.live import Live
from rich.text import Text

from ktaskfs.cli import live
from ktaskfs.cli.fleet.hosts import FINE, finished_percent
from ktaskfs.cli.fleet.summary import show_summary, status_line, summary_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, RenderableType

    from ktaskfs.cli.fleet.hosts import Fleet, Host

EVERY: Final = 1.0
"""Seconds between two pictures."""
ROWS_MOST: Final = 24
"""Running hosts with a line."""
SHARE: Final = 0.01
"""The largest part of the time for drawing: one picture costs as much as hundreds of lines from hosts."""
GROUPS_MOST: Final = 8
"""Groups of ended hosts that are shown while others run."""


class LiveTable:
    """The table on standard error."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = live.LineConsole() if console is None else console
        self._clock = clock
        self._next = 0.0
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)

    def heard(self, host: Host, told: dict[str, Any]) -> None:
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
        """As much as fits: the running hosts, slowest first, the groups of ended hosts, and a line on all."""
        ended = fleet.groups()
        ended, folded = ended[:GROUPS_MOST], ended[GROUPS_MOST:]
        below = [
            Text(summary_line(each), style="" if each.state in FINE else "red", no_wrap=True, overflow="ellipsis")
            for each in ended
        ]
        if folded:
            below.append(Text(f"{sum(len(each.hosts) for each in folded)} more ended in other ways"))
        below.append(Text(status_line(fleet), style="bold", no_wrap=True, overflow="ellipsis"))
        most = max(1, min(ROWS_MOST, self._console.height - 2 - len(below)))  # the cursor has the last line
        at_work = sorted(
            (host.standing for host in fleet if host.tasks and not host.has_ended),
            key=lambda each: (finished_percent(each), each.name),
        )
        width = self._console.width
        table = live.grid(width)
        for each in at_work[:most]:
            table.add_row(*live.row(each, width))
        if hidden := at_work[most:]:
            below.insert(0, Text(f"{len(hidden)} more from {finished_percent(hidden[0]):.1f}% on", style="dim"))
        return Group(table, *below)
