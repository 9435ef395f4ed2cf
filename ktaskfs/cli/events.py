"""``ktaskfs events``: state changes of tasks."""

from __future__ import annotations

import fnmatch
import json
import math
import os
import select
import signal
import sys
from typing import TYPE_CHECKING, Any

from ktaskfs.cli.mounted import Mounted, let_go
from ktaskfs.errors import DaemonAway

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ktaskfs.cli.interrupts import Interrupts


def events(given: argparse.Namespace, interrupts: Interrupts | None) -> int:
    """Print them until ^C; if the daemon dies, continue with the next one. Raises KtaskfsError.

    Ends with the process that hears ^C, if there is one.
    """
    mounted = Mounted(given.mount)
    while True:
        fd = mounted.open("events")
        mounted = mounted._replace(patience=math.inf)
        try:
            for line in _lines(mounted, fd, interrupts):
                if _is_wanted(line, given.name):
                    print(json.dumps(as_object(line)) if given.json else line, flush=True)
        except DaemonAway:
            print("ktaskfs: the daemon does not answer; events until it answers are lost", file=sys.stderr)
        finally:
            let_go(fd)


def _lines(mounted: Mounted, fd: int, interrupts: Interrupts | None) -> Iterator[str]:
    """The lines with something in them. Raises DaemonAway at the end of the stream."""
    rest = b""
    while True:
        try:
            piece = os.read(fd, 1 << 16)
        except OSError as error:
            raise mounted.failed(error, "events") from error
        if interrupts is not None:
            interrupts.drain()
        _end_without_reader()
        if not piece:
            raise DaemonAway(f"the daemon of {mounted.path} has ended")
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line.decode() for line in lines if line)


def _end_without_reader() -> None:
    """End as if by a write to a pipe that nobody reads any more: the next event may come hours later."""
    poll = select.poll()
    poll.register(1, 0)
    if poll.poll(0):  # POLLERR or POLLHUP
        signal.raise_signal(signal.SIGPIPE)


def _is_wanted(line: str, patterns: list[str]) -> bool:
    """Whether the event is of a task that matches, or says that events were lost."""
    task = line.split()[1]
    return not patterns or task == "-" or any(fnmatch.fnmatchcase(task, pattern) for pattern in patterns)


def as_object(line: str) -> dict[str, Any]:
    """``TIME TASK OLD NEW KEY=VALUE ...`` with null for "-", and numbers for numbers."""
    time, task, old, new, *pairs = line.split()
    found: dict[str, Any] = {"time": float(time)}
    texts = {"task": task, "old": old, "new": new, **dict(pair.split("=", 1) for pair in pairs)}
    for key, text in texts.items():
        is_number = key in ("uid", "lost") and text.isdigit()
        found[key] = int(text) if is_number else None if text == "-" else text
    return found
