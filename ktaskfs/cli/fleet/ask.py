"""``ktaskfs ls --hosts`` and ``ktaskfs doctor --hosts``: the combined answers of many hosts."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.cli import phrases
from ktaskfs.cli.fleet.connections import Connections, Way, folded, names_of
from ktaskfs.cli.fleet.hosts import (
    KEPT_MOST,
    OBJECT_SIZE,
    TOO_MUCH,
    HostGroup,
    broken,
    parsed,
    reason_of,
    text_of_line,
    with_host,
    with_name,
    without_name,
)
from ktaskfs.cli.fleet.summary import summary_line
from ktaskfs.cli.fleet.watch import remote
from ktaskfs.cli.follow import Standing
from ktaskfs.units import table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

HEADER: Final = ("host", "name", "operation", "state", "percent", "progress", "speed", "finish", "uid")
LEVELS: Final = ("wrong", "note", "unknown")
"""The levels of findings that are shown; a host without problems has none."""
PATIENCE: Final = 60
"""Seconds to wait for the answers of hosts, without --timeout."""
CELL_MOST: Final = 128
"""Maximum characters of a cell, as of a name: a host may lie, and each row is as wide as the widest one."""


class Answers:
    """The objects that each host printed, and how the connections to the other hosts ended."""

    def __init__(self, names: Sequence[str], seconds: float, *, may_be_empty: bool) -> None:
        """``seconds`` to wait for them. ``may_be_empty``: no object is an answer, too."""
        self.objects: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        self._left = dict.fromkeys(names, "")
        self._sizes = dict.fromkeys(names, 0)
        self._bad: dict[tuple[str, str], list[str]] = {}
        self._may_be_empty = may_be_empty
        self._end = time.monotonic() + seconds
        self._seconds = seconds
        self._connections: Connections | None = None

    def ask(self, connections: Connections) -> None:
        """Return when all hosts have answered, or the time is over."""
        self._connections = connections
        unreachable = connections.run()
        self._connections = None
        words = f"no answer within {self._seconds:g} s" if unreachable is None else unreachable
        for name in self._left:
            self._bad.setdefault(("timeout" if unreachable is None else "unreachable", words), []).append(name)

    @property
    def bad(self) -> list[HostGroup]:
        """The hosts without a proper answer, by reason."""
        return [HostGroup(state, words, names) for (state, words), names in self._bad.items()]

    def connecting(self, host: str) -> None:
        """See HostObserver."""

    def said(self, host: str, line: bytes) -> None:
        """See HostObserver."""
        if host not in self.objects:
            print(f"{host}: {text_of_line(line)}", file=sys.stderr)
        elif self._sizes[host] > KEPT_MOST:
            self.objects[host].clear()
            self._left[host] = TOO_MUCH
        elif (told := parsed(line)) is not None:
            self._sizes[host] += OBJECT_SIZE + len(line)
            self.objects[host].append(told)
        else:
            self._left[host] = reason_of(line, self._left[host])

    def ended(self, host: str, status: int | None) -> bool:
        """See HostObserver."""
        heard = self._left.pop(host, "")
        has_spoken = bool(self.objects.get(host))
        # The status 1 is that of the doctor if something is wrong.
        has_answered = (status in (0, 1) and has_spoken) or (status == 0 and self._may_be_empty)
        is_answer = has_answered and heard != TOO_MUCH
        if host in self.objects and not is_answer:
            state, words = broken(status, heard, has_spoken=has_spoken)
            self._bad.setdefault((state, without_name(words, host)), []).append(host)
        return True

    def tick(self) -> None:
        """See HostObserver."""
        if self._connections is not None and time.monotonic() > self._end:
            self._connections.drop()


def _answers(given: argparse.Namespace, words: Sequence[str]) -> Answers:
    names = names_of(given.hosts)
    answers = Answers(names, given.timeout or PATIENCE, may_be_empty=given.command == "ls")
    answers.ask(Connections(Way.of(given), remote(given, given.command, words), [names], answers))
    return answers


def _end(given: argparse.Namespace, answers: Answers) -> int:
    """Report the hosts without an answer; returns the exit status."""
    for group in answers.bad:
        if given.json:
            for name in group.hosts:
                print(json.dumps({"host": name, "state": group.state, "error": with_name(group.words, name)}))
        else:
            print(f"ktaskfs: {summary_line(group)}", file=sys.stderr)
    return int(bool(answers.bad))


def _print_objects(answers: Answers) -> None:
    for host, objects in answers.objects.items():
        for each in objects:
            print(with_host(host, each))


def ls(given: argparse.Namespace) -> int:
    """List the tasks of all hosts, or those that match. Raises KtaskfsError."""
    answers = _answers(given, given.name)
    if given.json:
        _print_objects(answers)
    else:
        rows = [(host, *cells_of(each)) for host, objects in answers.objects.items() for each in objects]
        print(table(HEADER, rows), end="")
    return _end(given, answers)


def cells_of(figures: dict[str, Any]) -> list[str]:
    """The cells of a task of a host, but the first."""
    standing = Standing(str(figures.get("name")), str(figures.get("state") or "-"), figures)
    words = (
        standing.name,
        figures.get("operation"),
        standing.state,
        phrases.percent_text(standing),
        phrases.progress_text(standing).replace(" ", ""),
        phrases.speed_text(standing).replace(" ", ""),
        phrases.finish_text(standing),
        figures.get("uid"),
    )
    return ["-" if each in (None, "") else str(each)[:CELL_MOST] for each in words]


def doctor(given: argparse.Namespace) -> int:
    """Print each problem with its hosts; returns 0 only if there is none. Raises KtaskfsError."""
    answers = _answers(given, [])
    found: dict[tuple[str, str, str, str | None], list[str]] = {}
    well, bad = [], {name for group in answers.bad for name in group.hosts}
    for host, objects in answers.objects.items():
        for each in objects:
            mend = None if each.get("mend") is None else str(each["mend"])
            key = (str(each.get("level")), str(each.get("check")), str(each.get("text")), mend)
            if key[0] in LEVELS:
                found.setdefault(key, []).append(host)
        if host not in bad and not any(each.get("level") == "wrong" for each in objects):
            well.append(host)
    if given.json:
        _print_objects(answers)
    else:
        for key in sorted(found, key=lambda each: (LEVELS.index(each[0]), -len(found[each]))):
            level, check, text, mend = key
            more = "" if mend is None else f"\n{'':9}{mend}"
            print(f"{level:7}  {folded(found[key])}: {check}: {text}{more}")
        if well:
            print(f"{'ok':7}  {folded(well)}")
    status = _end(given, answers)
    return int(status or any(level == "wrong" for level, *_ in found))
