"""``ktaskfs run --hosts``: starts a specification on hosts, and follows it there to the end."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from typing import TYPE_CHECKING, Final

from ktaskfs.cli.arguments import DEFAULT_MOUNT
from ktaskfs.cli.fleet.connections import Connections, Way, names_of
from ktaskfs.cli.fleet.hosts import LEFT, SKIPPED, TIMEOUT, UNREACHABLE, WAITING, Fleet, text_of_line
from ktaskfs.cli.fleet.reports import fleet_report
from ktaskfs.cli.fleet.summary import show_results
from ktaskfs.cli.interrupts import INTERRUPTED, OwnInterrupts
from ktaskfs.cli.run import text_of
from ktaskfs.cli.specs import read_specs
from ktaskfs.cli.start import IfExists
from ktaskfs.errors import InvalidValue, WrongCommandLine

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from ktaskfs.cli.fleet.reports import FleetReport
    from ktaskfs.cli.specs import CommandSpec

MOST: Final = 96 << 10
"""Bytes of a specification: it is one word of a command line, and the kernel allows 128 KiB for a word."""
CANCEL_EVERY: Final = 5.0
"""Seconds until hosts are told again to cancel: a host whose daemon was away at the first time has not done so."""
SPECIAL: Final = re.compile(r"([\\!'])")
"""Characters that mean something between single quotes in sh(1), csh(1) or fish(1)."""


def run(given: argparse.Namespace) -> int:
    """Start it on all hosts; returns the exit status. Raises KtaskfsError if nothing can start."""
    if given.files:
        raise WrongCommandLine("--files reads files of this machine: leave out --hosts")
    names = names_of(given.hosts)
    batches = batches_of(names, given.batch)
    specs = _specs(given)
    command = _command(given, specs)
    fleet = Fleet(names, tasks=len({each.name for each in specs}), detach=given.detach)
    with OwnInterrupts() as interrupts:
        watch = Watch(fleet, fleet_report(given, os.environ), interrupts, given)
        watch.run(Connections(Way.of(given), command, batches, watch))
    if not given.json:
        show_results(fleet)
    return INTERRUPTED if interrupts.count else fleet.exit_status


def _specs(given: argparse.Namespace) -> list[CommandSpec]:
    """Those of the command line, each with a name."""
    found = [each.named() for each in read_specs(text_of(given.spec))]
    if not found:
        raise WrongCommandLine("there is no specification")
    return found


def _command(given: argparse.Namespace, specs: Sequence[CommandSpec]) -> str:
    """The command for a shell on each host."""
    text = "\n".join(each.text for each in specs)
    if len(text.encode(errors="surrogateescape")) > MOST:
        raise InvalidValue(f"specifications of more than {MOST >> 10} KiB cannot be sent")
    options = [f"--if-exists={given.if_exists or IfExists.RERUN.value}"]
    options += ["--detach"] * given.detach + ["--plan"] * given.plan
    return remote(given, "run", [*options, text])


def remote(given: argparse.Namespace, command: str, words: Sequence[str]) -> str:
    """The line for a shell that runs a command of ``ktaskfs`` on a host."""
    place = [] if given.mount == DEFAULT_MOUNT else ["-m", given.mount]
    return f"{given.remote or 'ktaskfs'} {' '.join(map(quoted, [command, '--json', *place, *words]))}"


def quoted(word: str) -> str:
    """A word for the login shell of a host: sh(1) and its relatives, csh(1), tcsh(1) or fish(1).

    csh takes no line break in a word.
    """
    if shlex.quote(word) == word:
        return word
    parts = [each for each in SPECIAL.split(word) if each]
    return "".join(f"\\{each}" if SPECIAL.fullmatch(each) else f"'{each}'" for each in parts) or "''"


def batches_of(names: Sequence[str], text: str | None) -> list[Sequence[str]]:
    """The hosts in batches of ``N``, or of ``P%`` of all. Raises WrongCommandLine."""
    if text is None:
        return [names]
    match = re.fullmatch(r"(\d+)(%?)", text)
    number = int(match[1]) if match is not None else 0
    if match is None or number < 1 or (match[2] and number > 100):
        raise WrongCommandLine(f"--batch: {text!r} is neither a number of hosts nor a percentage such as 10%")
    size = max(1, len(names) * number // 100) if match[2] else number
    return [names[at : at + size] for at in range(0, len(names), size)]


class Watch:
    """Watches a running fleet, and handles ^C and the options."""

    def __init__(self, fleet: Fleet, report: FleetReport, interrupts: OwnInterrupts, given: argparse.Namespace) -> None:
        self._fleet = fleet
        self._report = report
        self._interrupts = interrupts
        self._max_failed = given.max_failed
        self._timeout = given.timeout
        self._end = None if given.timeout is None else time.monotonic() + given.timeout
        self._tell_at = 0.0
        """After ^C, when to tell the hosts to cancel; 0 before the first time."""
        self._connections: Connections | None = None

    def run(self, connections: Connections) -> None:
        """Return when all hosts have ended, or are no longer watched."""
        self._connections = connections
        try:
            unreachable = connections.run()
        except BaseException:
            self._report.close(self._fleet)
            raise
        self._connections = None
        for host in self._fleet:
            if host.has_ended:
                continue
            if host.state == WAITING:
                self._ends(host.name, SKIPPED)
            elif unreachable is not None:
                self._ends(host.name, UNREACHABLE, unreachable)
            elif self._interrupts.count > 1:
                self._ends(host.name, LEFT)
            else:
                why = ": its daemon does not answer" if host.standing.stale else ""
                self._ends(host.name, TIMEOUT, f"not done after {self._timeout} s{why}")
        self._report.close(self._fleet)
        at_work = [host for host in self._fleet if host.state in (LEFT, TIMEOUT)]
        if at_work:
            print("ktaskfs: the tasks go on; the same command follows them again", file=sys.stderr)

    def _ends(self, name: str, state: str, words: str = "") -> None:
        self._fleet.end(name, state, words)
        self._report.ended(self._fleet[name])

    def connecting(self, host: str) -> None:
        """See HostObserver."""
        self._fleet.connecting(host)

    def said(self, host: str, line: bytes) -> None:
        """See HostObserver."""
        if host not in self._fleet:
            self._report.note(f"{host}: {text_of_line(line)}")
        elif (told := self._fleet.heard(host, line)) is not None:
            self._report.heard(self._fleet[host], told)

    def ended(self, host: str, status: int | None) -> bool:
        """See HostObserver."""
        if host in self._fleet:
            self._fleet.ended(host, status)
            self._report.ended(self._fleet[host])
        return not self._tell_at and (self._max_failed is None or self._fleet.failed < self._max_failed)

    def tick(self) -> None:
        """See HostObserver."""
        self._report.show(self._fleet)
        if self._connections is None:
            return
        if self._interrupts.count > 1 or (self._end is not None and time.monotonic() > self._end):
            self._connections.drop()
        elif self._interrupts.count and time.monotonic() > self._tell_at:
            if not self._tell_at:
                self._report.note("cancelling on all hosts; ^C again leaves the rest running")
                self._connections.begin_no_more()
            self._tell_at = time.monotonic() + CANCEL_EVERY
            self._connections.tell("cancel")
