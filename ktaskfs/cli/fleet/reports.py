"""The reports of ``ktaskfs run --hosts``: JSON, or lines for a log. ``table`` has the live one."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

from ktaskfs.cli.fleet.connections import folded
from ktaskfs.cli.fleet.hosts import AT_THE_END, FINE, with_host
from ktaskfs.cli.fleet.summary import WORDS_MOST, show_summary, status_line
from ktaskfs.cli.reports import LINES_EVERY
from ktaskfs.cli.screen import can_draw

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from ktaskfs.cli.fleet.hosts import Fleet, Host


class FleetReport(Protocol):
    """Shows the status of hosts."""

    def heard(self, host: Host, told: dict[str, Any]) -> None:
        """A host has reported a task."""

    def ended(self, host: Host) -> None:
        """A host has its final state."""

    def show(self, fleet: Fleet) -> None:
        """Show news; called at each tick."""

    def note(self, words: str) -> None:
        """Show a sentence to a person."""

    def close(self, fleet: Fleet) -> None:
        """All hosts have ended."""


def fleet_report(given: argparse.Namespace, environment: Mapping[str, str]) -> FleetReport:
    """The report for the options, or for the kind of standard error."""
    if given.json:
        return FleetJson()
    if not given.quiet and can_draw(environment):
        from ktaskfs.cli.fleet.table import LiveTable

        return LiveTable()
    return FleetLines(quiet=given.quiet)


class FleetJson:
    """Prints the objects of the hosts on standard output, each with ``host``, and a summary at the end."""

    def heard(self, host: Host, told: dict[str, Any]) -> None:
        print(with_host(host.name, told), flush=True)

    def ended(self, host: Host) -> None:
        told = host.state in ("refused", *(each.state for each in host.tasks.values()))
        if not told:
            found = {"host": host.name, "name": None, "state": host.state, "error": host.own_words or None}
            print(json.dumps(found), flush=True)

    def show(self, fleet: Fleet) -> None:
        pass

    def note(self, words: str) -> None:
        print(f"ktaskfs: {words}", file=sys.stderr, flush=True)

    def close(self, fleet: Fleet) -> None:
        groups = [
            {"state": each.state, "error": each.words or None, "count": len(each.hosts), "hosts": folded(each.hosts)}
            for each in fleet.groups()
        ]
        print(json.dumps({"host": None, "summary": groups}), flush=True)


class FleetLines:
    """Prints lines on standard error: the status of all from time to time, each failure, and a summary at the end."""

    def __init__(self, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._quiet = quiet
        self._clock = clock
        self._said = clock()

    def heard(self, host: Host, told: dict[str, Any]) -> None:
        pass

    def ended(self, host: Host) -> None:
        if host.state not in FINE | AT_THE_END and not self._quiet:
            self.note(f"{host.name}: {host.state}{f': {host.own_words}' if host.words else ''}"[:WORDS_MOST])

    def show(self, fleet: Fleet) -> None:
        now = self._clock()
        if not self._quiet and now - self._said >= LINES_EVERY:
            self._said = now
            self.note(status_line(fleet))

    def note(self, words: str) -> None:
        print(words, file=sys.stderr, flush=True)

    def close(self, fleet: Fleet) -> None:
        show_summary(fleet, quiet=self._quiet)
