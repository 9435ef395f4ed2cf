"""The figures of a benchmark, and their text in Markdown."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

GIB: Final = 1 << 30
UNITS: Final = {"s": (1.0, "s"), "ms": (1e3, "ms"), "us": (1e6, "µs"), "bytes": (1 / (1 << 20), "MiB")}


@dataclass(frozen=True)
class Series:
    """All the values of one contender in one section; ``work`` and ``group`` are the contender's."""

    name: str
    values: list[float]
    work: int | None = None
    group: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The first and third quartile; with fewer than four values, the least and the greatest."""
        if len(self.values) < 4:
            return min(self.values), max(self.values)
        first, _, third = statistics.quantiles(self.values, n=4, method="inclusive")
        return first, third


@dataclass(frozen=True)
class Goal:
    """``left`` divided by ``right``: the ratio of their medians, and its goal. Without ``right``, the median."""

    text: str
    left: str
    right: str | None
    least: float | None = None
    most: float | None = None

    @property
    def has_bounds(self) -> bool:
        """Whether it can be missed."""
        return self.least is not None or self.most is not None


@dataclass(frozen=True)
class Table:
    """Figures that are not medians, ready to print; the first column is of text, the others of numbers."""

    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Section:
    """One table of results; without series, a note with the reason."""

    title: str
    series: list[Series]
    unit: str = "s"
    work: int | None = None
    """Bytes that one measurement of any series handles, for a column of throughput."""
    goals: list[Goal] = field(default_factory=list)
    note: str = ""
    tables: list[Table] = field(default_factory=list)
    """Results computed from the series, printed between the goals and the note."""


def table(section: Section, *, judge: bool = True) -> str:
    """The section in Markdown; ``judge`` adds to each ratio whether the goal is met."""
    blocks = [f"### {section.title}"]
    blocks += [markdown(_medians(section))] if section.series else []
    blocks += ["\n".join(f"- {verdict(goal, section, judge=judge)}" for goal in section.goals)] if section.goals else []
    blocks += map(markdown, section.tables)
    blocks += [section.note] if section.note else []
    return "\n\n".join(blocks)


def _medians(section: Section) -> Table:
    factor, unit = UNITS[section.unit]
    works = [series.work or section.work for series in section.series]
    rows = []
    for series, work in zip(section.series, works, strict=True):
        low, high = series.spread
        row = [series.name, shown(series.median * factor)]
        row += [f"{shown(low * factor)} to {shown(high * factor)}", str(len(series.values))]
        rows.append(row + [f"{work / series.median / GIB:.1f}" if work else ""] * any(works))
    return Table(["", f"median {unit}", "quartiles", "n"] + ["GiB/s"] * any(works), rows)


def markdown(what: Table) -> str:
    """The table in Markdown."""
    rule = ["---", *["---:"] * (len(what.header) - 1)]
    return "\n".join(map(_row, [what.header, rule, *what.rows]))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def shown(number: float) -> str:
    """A figure with three digits, or more before the point."""
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"


def ratio(goal: Goal, section: Section) -> float:
    """The figure that the goal speaks of."""
    medians = {series.name: series.median for series in section.series}
    return medians[goal.left] / (1 if goal.right is None else medians[goal.right])


def is_met(goal: Goal, section: Section) -> bool:
    """Whether the figure is within the goal's bounds."""
    value = ratio(goal, section)
    return (goal.least is None or value >= goal.least) and (goal.most is None or value <= goal.most)


def verdict(goal: Goal, section: Section, *, judge: bool = True) -> str:
    """The goal's figure; ``judge`` adds the goal, and whether it is reached."""
    factor, unit = UNITS[section.unit] if goal.right is None else (1.0, "")
    wanted = [f"at least {shown(goal.least * factor)}"] if goal.least is not None else []
    wanted += [f"at most {shown(goal.most * factor)}"] if goal.most is not None else []
    met = "met" if is_met(goal, section) else "**not met**"
    judgement = f" (wanted: {' and '.join(wanted)}: {met})" if wanted and judge else ""
    return f"{goal.text}: **{shown(ratio(goal, section) * factor)}{' ' * bool(unit)}{unit}**{judgement}"
