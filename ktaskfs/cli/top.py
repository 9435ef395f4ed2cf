"""``ktaskfs top``: all tasks on a screen, with keys. Needs textual, which is an extra of the package."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import DataTable, Footer, Sparkline, Static

from ktaskfs.cli import phrases
from ktaskfs.cli.mounted import Mounted
from ktaskfs.cli.picture import Picture, holders, next_rate, next_threads, take
from ktaskfs.cli.screen import can_draw
from ktaskfs.errors import KtaskfsError, NotSupported
from ktaskfs.units import human_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from textual.binding import BindingType

    from ktaskfs.cli.follow import Standing

EVERY: Final = 1.0
"""Seconds between two pictures."""
HOLDERS_EVERY: Final = 5.0
"""Seconds between two reads of the holders of huge pages, which cost more."""
REMEMBERED: Final = 240
"""Values in the graph."""
LOW: Final = 10
"""Lines of a terminal below which only the tasks are shown."""
BAR_WIDTH: Final = 9
NAME_WIDTH: Final = 15
COLUMNS: Final = {"task": 16, "done": 10, "percent": 7, "amount": 18, "speed": 11, "finish": 7, "state": 11}
"""Widths, 80 in all: without a width, textual measures all rows of a column at each change of a cell."""
STYLES: Final = {"running": "bold", "failed": "red", "interrupted": "red", "cancelled": "yellow", "paused": "yellow"}


def cells(standing: Standing) -> tuple[Text, ...]:
    """The row of a task."""
    part = standing.figures.get("percent") or 0.0
    full = int(part * BAR_WIDTH / 100)
    name = standing.name if len(standing.name) <= NAME_WIDTH else f"{standing.name[: NAME_WIDTH - 1]}…"
    texts = (
        name,
        "█" * full + "░" * (BAR_WIDTH - full),
        phrases.percent_text(standing),
        phrases.progress_text(standing),
        phrases.speed_text(standing) if standing.state == "running" else "",
        phrases.finish_text(standing),
        standing.state,
    )
    style = STYLES.get(standing.state, "")
    return tuple(Text(text, style=style, no_wrap=True) for text in texts)


class Top(App[None]):
    """The screen of one mount."""

    CSS = """
    #head { height: 1; text-style: reverse; text-wrap: nowrap; text-overflow: ellipsis; }
    #tasks { height: 1fr; overflow-x: hidden; }
    #graph { height: 2; }
    #below { height: 7; max-height: 45%; }
    #threads { width: 1fr; }
    #pools { width: 1fr; text-wrap: nowrap; text-overflow: ellipsis; }
    .-low #graph, .-low #below { display: none; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        ("p", "write('control', 'pause')", "pause"),
        ("r", "write('control', 'resume')", "resume"),
        ("C", "write('control', 'cancel')", "cancel"),  # a capital, as there is no way back
        Binding("plus,equals_sign", "threads(1)", "thread", key_display="+"),
        Binding("minus", "threads(-1)", "thread", key_display="-"),
        Binding("right_square_bracket", "rate(True)", "faster", key_display="]"),
        Binding("left_square_bracket", "rate(False)", "slower", key_display="["),
        ("m", "write('rate_max', 'max')", "max"),
        ("q", "quit", "quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False, priority=True),
    ]

    class Seen(Message):
        """A picture was taken."""

        def __init__(self, picture: Picture) -> None:
            super().__init__()
            self.picture = picture

    class Held(Message):
        """The holders of huge pages were read."""

        def __init__(self, lines: Sequence[str]) -> None:
            super().__init__()
            self.lines = lines

    class Refused(Message):
        """The mount has refused the command of a key."""

        def __init__(self, words: str) -> None:
            super().__init__()
            self.words = words

    def __init__(self, mounted: Mounted) -> None:
        super().__init__()
        self.VERTICAL_BREAKPOINTS = [(0, "-low"), (LOW, "-high")]
        self._mounted = mounted
        self._picture = Picture()
        self._speeds: deque[float] = deque([0.0] * REMEMBERED, REMEMBERED)
        self._shown: dict[str, Standing] = {}
        self._is_looking = False
        self._is_looking_for_holders = False
        self._holders: Sequence[str] = ()

    def compose(self) -> ComposeResult:
        """The widgets, from above."""
        yield Static(id="head")
        yield DataTable(id="tasks", cursor_type="row", cell_padding=0)
        yield Sparkline(list(self._speeds), summary_function=max, id="graph")
        with Horizontal(id="below"):
            yield Static(id="threads")
            yield Static(id="pools")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Read the mount now, and then regularly. SIGTERM leaves the terminal as it was."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.exit, None, 128 + signal.SIGTERM)
        table = self._table
        for name, width in COLUMNS.items():
            table.add_column(name, key=name, width=width)
        self.look()
        self.set_interval(EVERY, self.look)
        self.look_for_holders()
        self.set_interval(HOLDERS_EVERY, self.look_for_holders)

    @property
    def _table(self) -> DataTable[Text]:
        return self.query_one("#tasks", DataTable)

    @property
    def _has_screen(self) -> bool:
        """False while the screen ends: a thread may still deliver a picture."""
        return bool(self.query("#tasks"))

    @property
    def chosen(self) -> Standing | None:
        """The task at the cursor."""
        if not self._shown or not self._has_screen:
            return None
        row = min(self._table.cursor_row, len(self._picture.tasks) - 1)
        return self._picture.tasks[row]

    def look(self) -> None:
        """Read the mount and show it, unless the last read is still running."""
        if not self._is_looking:
            self._is_looking = True
            chosen = self.chosen
            name, before = None if chosen is None else chosen.name, self._picture
            self._behind(lambda: self.post_message(self.Seen(take(self._mounted, name, before))))

    def look_for_holders(self) -> None:
        """Read the holders of huge pages, unless the last read is still running."""
        if not self._is_looking_for_holders:
            self._is_looking_for_holders = True
            self._behind(lambda: self.post_message(self.Held(holders(self._mounted))))

    def on_top_held(self, message: Held) -> None:
        """Keep the lines for the next picture."""
        self._is_looking_for_holders = False
        self._holders = message.lines

    def _behind(self, call: Callable[[], object]) -> None:
        """Call it in a thread, so that a stopped daemon does not block the keys."""
        threading.Thread(target=call, daemon=True).start()

    def on_top_refused(self, message: Refused) -> None:
        """Show the words for some seconds."""
        self.notify(message.words, severity="error", markup=False)

    def on_top_seen(self, message: Seen) -> None:
        """Show a picture."""
        self._is_looking = False
        if not self._has_screen:
            return
        picture = message.picture
        self._speeds.append(picture.speed)
        chosen = self.chosen
        self._picture = picture
        self._show_tasks(None if chosen is None else chosen.name)
        title = f" ktaskfs  {picture.summary}  {human_size(picture.speed)}/s  {self._mounted.path}"
        head = Text(title if picture.problem is None else f" {picture.problem}")
        self.query_one("#head", Static).update(head)
        self.query_one("#graph", Sparkline).data = list(self._speeds)
        name = "" if self.chosen is None else self.chosen.name
        threads = [f"threads of {name}" if picture.threads else "", *picture.threads]
        pools = ["pools of huge pages", *(each.words for each in picture.pools if each.total)]
        pools += ["held by", *self._holders] if self._holders else []
        for place, lines in (("#threads", threads), ("#pools", pools)):
            self.query_one(place, Static).update(Text("\n".join(lines)))

    def _show_tasks(self, chosen: str | None) -> None:
        """Update changed cells; rebuild the table if the order changes."""
        table, tasks = self._table, self._picture.tasks
        if [each.name for each in tasks] != list(self._shown):
            table.clear()
            for each in tasks:
                table.add_row(*cells(each), key=each.name)
            names = [each.name for each in tasks]
            if chosen in names:
                table.move_cursor(row=names.index(chosen), animate=False)
        else:
            for each in tasks:
                if each != self._shown[each.name]:
                    before = cells(self._shown[each.name])
                    for name, old, cell in zip(COLUMNS, before, cells(each), strict=True):
                        if cell != old:
                            table.update_cell(each.name, name, cell)
        self._shown = {each.name: each for each in tasks}

    def action_write(self, file: str, text: str) -> None:
        """Write to a file of the chosen task."""
        if self.chosen is None:
            return
        name = self.chosen.name

        def write() -> None:
            try:
                self._mounted.write(f"tasks/{name}/{file}", text)
            except KtaskfsError as error:
                self.post_message(self.Refused(error.message))

        self._behind(write)

    def action_threads(self, step: int) -> None:
        """Change the number of threads of the chosen task."""
        if self.chosen is not None:
            self.action_write("max_threads", str(next_threads(self.chosen, step)))

    def action_rate(self, faster: bool) -> None:
        """Change the speed limit of the chosen task."""
        if self.chosen is not None:
            self.action_write("rate_max", next_rate(self.chosen, faster=faster))


def top(mount: str) -> int:
    """Show the screen until the user quits. Raises KtaskfsError."""
    mounted = Mounted(mount, patience=0)
    mounted.read("version")  # raises now if nothing is mounted
    # The screen is on standard error; but whoever sends standard output elsewhere, as to head(1), wants lines.
    if not (sys.stdin.isatty() and sys.stdout.isatty() and can_draw(os.environ)):
        raise NotSupported(
            "ktaskfs top needs a terminal, and not a dumb one; ktaskfs ls and events print what it shows"
        )
    screen = Top(mounted)
    screen.run()
    return screen.return_code or 0
