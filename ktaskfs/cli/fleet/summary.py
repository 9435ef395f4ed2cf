"""Many hosts in few lines: their states, ends, and results."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from ktaskfs.cli.fleet.connections import folded
from ktaskfs.cli.fleet.hosts import FINE, finished_percent, with_name
from ktaskfs.cli.reports import beginning, for_people, write_all
from ktaskfs.units import human_size

if TYPE_CHECKING:
    from ktaskfs.cli.fleet.hosts import Fleet, HostGroup

WORDS_MOST: Final = 200
"""Characters of a reason."""


def status_line(fleet: Fleet) -> str:
    """One line on all hosts: ``500 running, 12 done; 5.2TiB/s; slowest hv007 at 12.1%; no daemon on hv003``."""
    words = [", ".join(f"{count} {state}" for state, count in fleet.counts().items())]
    if speed := fleet.speed():
        words.append(f"{human_size(speed)}/s")
    at_work = [host for host in fleet if host.tasks and not host.has_ended]
    if at_work:
        slowest = min(at_work, key=lambda host: finished_percent(host.standing))
        words.append(f"slowest {slowest.name} at {finished_percent(slowest.standing):.1f}%")
    if away := [host.name for host in at_work if host.standing.stale]:
        words.append(f"no daemon on {folded(away)}")
    return "; ".join(words)


def summary_line(group: HostGroup) -> str:
    """``refused (1): hv2: ENOSPC: ...``."""
    reason = group.words if len(group.hosts) > 1 else with_name(group.words, group.hosts[0])
    words = f": {reason}" if reason else ""
    return f"{group.state} ({len(group.hosts)}): {folded(group.hosts)}{words[:WORDS_MOST]}"


def show_summary(fleet: Fleet, *, quiet: bool = False) -> None:
    """A line for each way in which hosts have ended, on standard error."""
    for group in fleet.groups():
        if not quiet or group.state not in FINE:
            print(summary_line(group), file=sys.stderr, flush=True)


def show_results(fleet: Fleet) -> None:
    """The results on standard output, each once with the hosts that have it."""
    found = fleet.results()
    several = len({task for task, _ in found}) > 1
    for (task, result), hosts in found.items():
        text, left_out = beginning(for_people(result)) if os.isatty(1) else (result, 0)
        sys.stdout.flush()
        heading = f"==> {folded(hosts)}{f' {task}' if several else ''} <==\n"
        write_all(1, _encoded(heading + text))
        if left_out:
            print(f"{left_out} more lines are in tasks/{task}/result", file=sys.stderr)


def _encoded(text: str) -> bytes:
    """A result as the host wrote it; escaped if it has half a surrogate pair, which no byte becomes."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace")
