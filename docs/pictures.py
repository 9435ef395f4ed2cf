"""Draws the pictures of the pages from tasks at work: ``python docs/pictures.py MOUNT [DIRECTORY]``.

``run.svg`` shows the bars of ``ktaskfs run``, ``top.svg`` the screen of ``ktaskfs top``. The tasks read files of
tmpfs that are removed again, each at a rate of its own, so that the bars differ. DIRECTORY is docs/pictures by default.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console

from ktaskfs.cli.follow import follow
from ktaskfs.cli.interrupts import OwnInterrupts
from ktaskfs.cli.live import LiveReport
from ktaskfs.cli.mounted import Mounted
from ktaskfs.cli.orders import Orders
from ktaskfs.cli.top import Top

HERE: Final = Path(__file__).resolve().parent / "pictures"
COLUMNS, ROWS = 100, 20
LOOKS: Final = 8.0
"""Seconds for which ``top`` watches, so that there is something in its graph."""
TASKS: Final = {"guest": (64, 3), "database": (96, 2), "weights": (40, 1)}
"""For each task the GiB in its file, and the GiB a second at which it goes. The files are holes."""
PART: Final = 25.0
"""Percent that the first task has done when the bars are drawn."""


def run_picture(mounted: Mounted, names: list[str]) -> str:
    """The bars of ``ktaskfs run`` when the first task is at PART."""
    with open(os.devnull, "w") as nowhere, OwnInterrupts() as interrupts:
        console = Console(record=True, width=COLUMNS, height=ROWS, force_terminal=True, file=nowhere)
        for standings in follow(mounted, names, 0.25, interrupts, Orders(None)):
            if standings[0].has_ended or (standings[0].figures.get("percent") or 0) >= PART:
                break
        console.print("[bold]#[/] ktaskfs run - < tasks.txt")
        console.print(LiveReport(Console(file=nowhere)).table(standings))
        return console.export_svg(title="ktaskfs run")


async def top_picture(mounted: Mounted) -> str:
    """The screen of ``ktaskfs top`` after some looks."""
    app = Top(mounted)
    async with app.run_test(size=(COLUMNS, ROWS)) as pilot:
        await pilot.pause(LOOKS)
        return app.export_screenshot(title="ktaskfs top")


def draw(mount: str, directory: Path) -> None:
    """Draw both; leaves no task and no file. Raises KtaskfsError for a task that is refused."""
    mounted = Mounted(mount)
    names = list(TASKS)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        for name, (size, rate) in TASKS.items():
            file = Path(memory, name)
            file.touch()
            os.truncate(file, size << 30)
            mounted.write("tasks/control", f"checksum path={file} chunk=64M rate_max={rate}G replace=1 name={name}")
        try:
            for name, text in (("run", run_picture(mounted, names)), ("top", asyncio.run(top_picture(mounted)))):
                lines = (line.rstrip() for line in text.splitlines())
                (directory / f"{name}.svg").write_text("\n".join(lines) + "\n", encoding="utf-8")
        finally:
            with OwnInterrupts() as interrupts:
                for name in names:
                    if not mounted.read(f"tasks/{name}/state").startswith("done"):
                        mounted.write(f"tasks/{name}/control", "cancel")
                for _ in follow(mounted, names, 1, interrupts, Orders(None)):
                    pass


if __name__ == "__main__":
    draw(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else HERE)
