"""The reports of a command that follows tasks: JSON, lines for a log, or nothing. ``live`` has the bars."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Final, Protocol

from ktaskfs.cli.screen import can_draw

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from ktaskfs.cli.follow import Standing
    from ktaskfs.cli.live import LiveReport

JSON_EVERY: Final = 1.0
"""Seconds between two objects of a task at work."""
SIGN_OF_LIFE: Final = 4.0
"""Seconds after which the next look prints an object even if nothing is new, so that one comes within five seconds."""
RESULT_LINES: Final = 20
"""Maximum lines of a result on a terminal."""
BARS_EVERY: Final = 0.25
"""Seconds between two pictures of the bars."""
BARS_AFTER: Final = 0.25
"""Seconds after which tasks at work get bars."""
LINES_MOST: Final = 5
"""Tasks that get lines if they end before they have bars."""
LINES_EVERY: Final = 5.0
"""Seconds between two lines of a task at work."""


class Report(Protocol):
    """Shows the status of tasks.

    every:   seconds between two looks at the tasks.
    results: whether to show results at the end.
    """

    every: float
    results: bool

    def show(self, standings: Sequence[Standing]) -> None:
        """Show new events."""

    def note(self, words: str) -> None:
        """Show a sentence to a person."""

    def close(self) -> None:
        """Called after the last ``show``."""


def report_for(given: argparse.Namespace, environment: Mapping[str, str]) -> Report:
    """The report for the options, or for the kind of standard error."""
    if given.json:
        return JsonReport()
    if given.quiet:
        return ResultsOnly()
    if can_draw(environment):
        return Bars()
    return Lines()


def as_json(standing: Standing) -> str:
    """One object on one line: the figures of stat.json, with ``result`` and ``stale``."""
    more = {"name": standing.name, "state": standing.state, "result": standing.result, "stale": standing.stale}
    return json.dumps({**standing.figures, **more})


class JsonReport:
    """Prints objects on standard output."""

    every = JSON_EVERY
    results = False

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, tuple[Standing, float]] = {}

    def show(self, standings: Sequence[Standing]) -> None:
        now = self._clock()
        for each in standings:
            before, when = self._said.get(each.name, (None, 0.0))
            if before is not None and (before.has_ended or (each == before and now - when < SIGN_OF_LIFE)):
                continue
            news = before is None or (each.state, each.stale) != (before.state, before.stale)
            if news or now - when >= JSON_EVERY / 2:
                print(as_json(each), flush=True)
                self._said[each.name] = (each, now)

    def note(self, words: str) -> None:
        pass

    def close(self) -> None:
        pass


class ResultsOnly:
    """Shows only results."""

    every = LINES_EVERY
    results = True

    def show(self, standings: Sequence[Standing]) -> None:
        pass

    def note(self, words: str) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """Prints lines on standard error: for each change of a state, and from time to time for each task at work."""

    every = LINES_EVERY
    results = True

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, tuple[str, bool, float]] = {}

    def show(self, standings: Sequence[Standing]) -> None:
        from ktaskfs.cli.phrases import line

        now = self._clock()
        for each in standings:
            state, stale, when = self._said.get(each.name, ("", False, 0.0))
            at_work = not each.has_ended and not each.stale
            if (each.state, each.stale) != (state, stale) or (at_work and now - when >= LINES_EVERY - 0.5):
                print(line(each), file=sys.stderr, flush=True)
                self._said[each.name] = (each.state, each.stale, now)

    def note(self, words: str) -> None:
        print(words, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class Bars:
    """Bars on a terminal, for longer tasks: the imports for the bars take longer than a short task.

    Tasks that end before the bars begin get a line each, if there are few.
    """

    every = BARS_EVERY
    results = True

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin = clock() + BARS_AFTER
        self._lines = Lines(clock)
        self._live: LiveReport | None = None

    def show(self, standings: Sequence[Standing]) -> None:
        if self._live is None:
            have_ended = all(each.has_ended for each in standings)
            if have_ended and len(standings) <= LINES_MOST:
                self._lines.show(standings)
                return
            if not have_ended and self._clock() < self._begin:
                return
            from ktaskfs.cli.live import LiveReport

            self._live = LiveReport()
        self._live.show(standings)

    def note(self, words: str) -> None:
        (self._live or self._lines).note(words)

    def close(self) -> None:
        if self._live is not None:
            self._live.close()


def show_end(standings: Sequence[Standing], report: Report) -> None:
    """Results on standard output, complaints on standard error."""
    several = len(standings) > 1
    for each in standings:
        if each.result and report.results:
            heading = f"==> {each.name} <==\n" if several else ""
            text, left_out = beginning(for_people(each.result)) if os.isatty(1) else (each.result, 0)
            sys.stdout.flush()
            write_all(1, os.fsencode(heading + text))
            if left_out:
                print(f"{left_out} more lines are in tasks/{each.name}/result", file=sys.stderr)
        if each.state not in ("done", "planned"):
            from ktaskfs.cli.phrases import complaint

            print(f"ktaskfs: {complaint(each)}", file=sys.stderr)


def for_people(text: str) -> str:
    """A result for a terminal, with control characters escaped: a list of digests has the names of files unchanged."""
    from ktaskfs.units import printable

    return "".join(f"{printable(line)}\n" for line in text.removesuffix("\n").split("\n"))


def beginning(text: str) -> tuple[str, int]:
    """The first lines of a long text, and the number of the other lines."""
    lines = text.splitlines(keepends=True)
    return "".join(lines[:RESULT_LINES]), max(0, len(lines) - RESULT_LINES)


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
