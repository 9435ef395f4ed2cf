"""The contents of ``ktaskfs top``, read from the mount at one moment; it uses no screen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from ktaskfs.cli.follow import Standing
from ktaskfs.cli.tables import rows
from ktaskfs.errors import DaemonAway, KtaskfsError
from ktaskfs.units import format_size, human_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.cli.mounted import Mounted


class PoolFigures(NamedTuple):
    """The pages of one size on one node: ``size`` as the mount writes it, counts in pages."""

    size: str
    node: str
    total: int
    free: int

    @property
    def words(self) -> str:
        """``node 0  2M  12/40 used  24.0MiB``."""
        used = self.total - self.free
        return f"node {self.node}  {self.size}  {used}/{self.total} used  {human_size(used * parse_size(self.size))}"


class Picture(NamedTuple):
    """The whole screen. ``problem`` says why the rest is old, or empty."""

    tasks: Sequence[Standing] = ()
    pools: Sequence[PoolFigures] = ()
    threads: Sequence[str] = ()
    problem: str | None = None

    @property
    def speed(self) -> float:
        """Bytes a second of all tasks at work that count bytes."""
        return sum(
            each.figures.get("speed") or 0
            for each in self.tasks
            if each.state == "running" and each.figures.get("units") == "bytes"
        )

    @property
    def summary(self) -> str:
        """How many tasks are in which state."""
        counts: dict[str, int] = {}
        for each in self.tasks:
            counts[each.state] = counts.get(each.state, 0) + 1
        return ", ".join(f"{count} {state}" for state, count in counts.items()) or "no tasks"


def take(mounted: Mounted, chosen: str | None, before: Picture) -> Picture:
    """The picture now, with the threads of the task ``chosen``; ``before`` with a problem where it cannot be had."""
    try:
        tasks = [
            Standing(each["name"], each["state"] or "unknown", each)
            for each in json.loads(mounted.read("info/tasks.json"))
        ]
        pools = [
            PoolFigures(row["size"], row["node"], int(row["total"]), int(row["free"]))
            for row in rows(mounted.read("info/hugepages"))
            if row["node"] != "-"
        ]
        return Picture(tasks, pools, _threads(mounted, chosen))
    except KtaskfsError as error:
        return before._replace(problem=error.message)


def holders(mounted: Mounted) -> list[str]:
    """A line for each holding of huge pages, the largest first; empty if the mount cannot tell.

    The read walks through all of /proc.
    """
    try:
        found = json.loads(mounted.read("info/holders.json"))["holdings"]
    except KtaskfsError:
        return []
    found.sort(key=lambda each: each["size"] * (each["used"] + each["reserved"]), reverse=True)
    lines = []
    for each in found:
        who = [f"{process['name']} {process['pid']}" for process in each["processes"]]
        place = (each["path"] or each["kind"]).rpartition("/")[2]
        pages = each["used"] + each["reserved"]
        lines.append(f"{pages} × {format_size(each['size'])}  {'  '.join([place, *who])}")
    return lines


def _threads(mounted: Mounted, name: str | None) -> list[str]:
    """A line for each node with threads of the task: their number and states."""
    if name is None:
        return []
    try:
        found = rows(mounted.read(f"tasks/{name}/threads"))
    except DaemonAway:
        raise
    except KtaskfsError:  # another user's, or just removed
        return []
    by_node: dict[str, list[dict[str, str]]] = {}
    for row in found:
        by_node.setdefault(row["node"], []).append(row)
    lines = []
    for node, threads in sorted(by_node.items()):
        states: dict[str, int] = {}
        for row in threads:
            states[row["state"]] = states.get(row["state"], 0) + 1
        chunks = sum(int(row["chunks"]) for row in threads)
        words = ", ".join(f"{count} {state}" for state, count in states.items())
        lines.append(f"{'any node' if node == '-' else f'node {node}'}: {words}; {chunks} chunks")
    return lines


def next_threads(standing: Standing, step: int) -> int:
    """One thread more or fewer for a task; 1 at least."""
    return max(1, (standing.figures.get("max_threads") or standing.figures.get("threads") or 1) + step)


def next_rate(standing: Standing, *, faster: bool) -> str:
    """Twice or half of the task's ``rate_max``, in units a second; without a limit half of its speed, or ``max``."""
    limit, speed = standing.figures.get("rate_max"), standing.figures.get("speed")
    if not limit and (faster or not speed):
        return "max"
    base = limit or speed or 1
    return str(max(1, base * 2 if faster else base // 2))
