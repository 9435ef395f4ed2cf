"""The time that a task takes whatever its size, and the speed beyond that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench.harness import Contender, Series, Table
from bench.report import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LEAST: Final = "ktaskfs, almost no work"


def least(measure: Callable[[], float], before: Callable[[], object]) -> Contender:
    """A task with almost no work: its time is that of the start and the end of any task."""
    return Contender(LEAST, measure, before)


def split(series: list[Series], against: Mapping[str, str]) -> tuple[list[Series], Table]:
    """The other series, and a table of speeds of ktaskfs against C, from the name of one to that of the other."""
    medians = {each.name: each.median for each in series}
    start = medians[LEAST]
    rows = [
        [f"{ours} / {peer}", shown(start * 1e3), shown(medians[peer] / (medians[ours] - start))]
        for ours, peer in against.items()
    ]
    header = ["", "ms of the start and the end", "speed against C without them"]
    return [each for each in series if each.name != LEAST], Table(header, rows)
