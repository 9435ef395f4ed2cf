"""The common code of all benchmarks: measures contenders in turns, and writes their figures.

A benchmark is a module ``bench/NAME.py`` that builds ``Section`` objects and passes them to ``main``.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from bench.environment import describe
from bench.report import GIB, Goal, Section, Series, Table, ratio, table
from bench.summary import Results
from ktaskfs.units import format_size, human_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["GIB", "Goal", "Section", "Series", "Table", "ratio", "table"]
"""The results of benchmarks, from ``bench.report``."""

HERE: Final = Path(__file__).parent


@dataclass(frozen=True)
class Contender:
    """Something that can be measured again and again: ``measure`` returns seconds (or bytes), ``before`` is untimed."""

    name: str
    measure: Callable[[], float]
    before: Callable[[], object] = lambda: None
    work: int | None = None
    """Bytes that one measurement handles, where that differs from contender to contender."""
    group: str = ""
    """The common name of contenders that differ only in the amount of work: the line of a plot that has them as points.
    """


@dataclass(frozen=True)
class Settings:
    """The options of the command line."""

    rounds: int
    size: int
    smoke: bool


SMOKE: Final = Settings(rounds=2, size=16 << 20, smoke=True)
"""The options of ``--smoke``."""


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


def main(name: str, title: str, build: Callable[[Settings], list[Section]], *, size: str = "4G") -> None:
    """The command line of a benchmark: measure, print, write results/NAME.json and, from all of these, RESULTS.md."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=title)
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default 7)")
    parser.add_argument("--size", type=parse_size, default=parse_size(size), help=f"bytes of memory (default {size})")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, two rounds, nothing written: does it run?")
    parser.add_argument("--output", type=Path, help="directory for RESULTS.md and results/ (default: bench/)")
    arguments = parser.parse_args()
    smoke = arguments.smoke
    settings = SMOKE if smoke else Settings(arguments.rounds, arguments.size, smoke=False)
    # So that mounts, files and pages do not stay.
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        sections = build(settings)
    finally:
        signal.signal(signal.SIGTERM, before)
    command = f"python -m bench.{name} --rounds {settings.rounds} --size {format_size(settings.size)}"
    results = Results(name, title, command, describe(), human_size(settings.size), tuple(sections))
    print(results.page(judge=not smoke))
    output = arguments.output or (None if smoke else HERE)
    if output is not None:
        results.write(output)
