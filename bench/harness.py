"""What every benchmark is made of: contenders measured in alternation, and their figures written down.

A benchmark is a module ``bench/NAME.py`` that builds ``Section`` objects and hands them to ``main``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from bench.environment import describe
from ktaskfs.units import format_size, human_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

HERE: Final = Path(__file__).parent
GIB: Final = 1 << 30
UNITS: Final = {"s": (1.0, "s"), "ms": (1e3, "ms"), "us": (1e6, "µs"), "bytes": (1 / (1 << 20), "MiB")}


@dataclass(frozen=True)
class Contender:
    """Something that can be measured again and again: ``measure`` returns seconds (or bytes), ``before`` is untimed."""

    name: str
    measure: Callable[[], float]
    before: Callable[[], object] = lambda: None
    work: int | None = None
    """Bytes that one measurement handles, where that differs from contender to contender."""
    group: str = ""
    """What contenders that differ only in their work have in common: the line of a plot that they are points of."""


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
    """``left`` against ``right``: the ratio of their medians, and what it should be. ``right`` None: the median."""

    text: str
    left: str
    right: str | None
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Table:
    """Figures that are not medians, ready to print; the first column is of text, the others of numbers."""

    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Section:
    """One table of results; without series, a note on why there are none."""

    title: str
    series: list[Series]
    unit: str = "s"
    work: int | None = None
    """Bytes that one measurement of any series handles, for a column of throughput."""
    goals: list[Goal] = field(default_factory=list)
    note: str = ""
    tables: list[Table] = field(default_factory=list)
    """What was worked out from the series, printed between the goals and the note."""


@dataclass(frozen=True)
class Settings:
    """What the command line chose."""

    rounds: int
    size: int
    smoke: bool


def settle(patience: float = 3.0) -> None:
    """Wait until the machine has nothing else to do, but no longer than ``patience`` seconds."""
    end = time.monotonic() + patience
    while psutil.cpu_percent(interval=0.05) > 10 and time.monotonic() < end:
        pass


def alternate(contenders: Sequence[Contender], rounds: int, *, warmups: int = 1, calm: bool = False) -> list[Series]:
    """Each contender once a round, the order turned by one each time; the first ``warmups`` rounds do not count.

    ``calm`` waits before each measurement for a moment when nothing else runs. What ``before`` gives free is used
    again at once: a host takes back memory of a virtual machine that lies free, and to get it again is slow.
    """
    values: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(warmups + rounds):
        turn = number % len(contenders)
        for contender in [*contenders[turn:], *contenders[:turn]]:
            if calm:
                settle()
            contender.before()
            value = contender.measure()
            if number >= warmups:
                values[contender.name].append(value)
    return [Series(each.name, values[each.name], each.work, each.group) for each in contenders]


@dataclass(frozen=True)
class Line:
    """The straight line of least squares through some points, and how well it fits them."""

    slope: float
    intercept: float
    r_squared: float
    deviation: float
    """The greatest distance of a point from the line, as a share of the line's value there."""

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> Line:
        """Points are (x, y); there must be two of different x, and of different y."""
        xs, ys = zip(*points, strict=True)
        slope, intercept = statistics.linear_regression(xs, ys)
        fitted = [slope * x + intercept for x in xs]
        deviation = max(abs(y / there - 1) for y, there in zip(ys, fitted, strict=True))
        return cls(slope, intercept, statistics.correlation(xs, ys) ** 2, deviation)


def seconds(action: Callable[[], object]) -> float:
    """How long ``action`` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def table(section: Section, *, judge: bool = True) -> str:
    """The section in Markdown; ``judge`` says beside each ratio whether the goal is met."""
    blocks = [f"### {section.title}"]
    blocks += [_markdown(_medians(section))] if section.series else []
    blocks += ["\n".join(f"- {_verdict(goal, section, judge)}" for goal in section.goals)] if section.goals else []
    blocks += map(_markdown, section.tables)
    blocks += [section.note] if section.note else []
    return "\n\n".join(blocks)


def _medians(section: Section) -> Table:
    factor, unit = UNITS[section.unit]
    works = [series.work or section.work for series in section.series]
    rows = []
    for series, work in zip(section.series, works, strict=True):
        low, high = series.spread
        row = [series.name, _digits(series.median * factor)]
        row += [f"{_digits(low * factor)} to {_digits(high * factor)}", str(len(series.values))]
        rows.append(row + [f"{work / series.median / GIB:.1f}" if work else ""] * any(works))
    return Table(["", f"median {unit}", "quartiles", "n"] + ["GiB/s"] * any(works), rows)


def _markdown(what: Table) -> str:
    rule = ["---", *["---:"] * (len(what.header) - 1)]
    return "\n".join(map(_row, [what.header, rule, *what.rows]))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _digits(number: float) -> str:
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"


def ratio(goal: Goal, section: Section) -> float:
    """The figure that the goal speaks of."""
    medians = {series.name: series.median for series in section.series}
    return medians[goal.left] / (1 if goal.right is None else medians[goal.right])


def _verdict(goal: Goal, section: Section, judge: bool) -> str:
    value = ratio(goal, section)
    factor, unit = UNITS[section.unit] if goal.right is None else (1.0, "")
    wanted = [f"at least {_digits(goal.least * factor)}"] if goal.least is not None else []
    wanted += [f"at most {_digits(goal.most * factor)}"] if goal.most is not None else []
    met = (goal.least is None or value >= goal.least) and (goal.most is None or value <= goal.most)
    judgement = f" (wanted: {' and '.join(wanted)}: {'met' if met else '**not met**'})" if wanted and judge else ""
    return f"{goal.text}: **{_digits(value * factor)}{' ' * bool(unit)}{unit}**{judgement}"


def main(name: str, title: str, build: Callable[[Settings], list[Section]], *, size: str = "4G") -> None:
    """The command line of a benchmark: measure, print, and put the section ``name`` into RESULTS.md and JSON."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=title)
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default 7)")
    parser.add_argument("--size", type=parse_size, default=parse_size(size), help=f"bytes of memory (default {size})")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, two rounds, nothing written: does it run?")
    parser.add_argument("--output", type=Path, help="directory for RESULTS.md and NAME.json (default: bench/)")
    arguments = parser.parse_args()
    smoke = arguments.smoke
    settings = Settings(2 if smoke else arguments.rounds, 16 << 20 if smoke else arguments.size, smoke)
    sections = build(settings)
    environment = describe()
    command = f"python -m bench.{name} --rounds {settings.rounds} --size {format_size(settings.size)}"
    about = [f"{key}: {value}" for key, value in environment.items()]
    about += [f"size {human_size(settings.size)}", f"command `{command}`"]
    text = "\n\n".join([f"## {title}", "; ".join(about) + ".", *(table(part, judge=not smoke) for part in sections)])
    print(text)
    output = arguments.output or (None if smoke else HERE)
    if output is not None:
        _put_section(output / "RESULTS.md", name, text)
        data = {"environment": environment, "command": command, "sections": [asdict(part) for part in sections]}
        (output / "results").mkdir(exist_ok=True)
        (output / "results" / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")


def _put_section(path: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of ``name`` in the file, or append it."""
    begin, end = f"<!-- {name} begins -->", f"<!-- {name} ends -->"
    old = path.read_text() if path.exists() else "# Results\n\nEach section is written by the command it names.\n"
    block = f"{begin}\n{text}\n{end}\n"
    if begin in old:
        head, _, rest = old.partition(begin)
        path.write_text(head + block + rest.partition(end)[2].lstrip("\n"))
    else:
        path.write_text(f"{old}\n{block}")
