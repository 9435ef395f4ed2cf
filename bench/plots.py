"""Draws the results as SVG: each plot is one declaration in ``PLOTS``, its figures come from bench/results/.

Usage: python -m bench.plots [--results DIR] [--output DIR]
The same figures give the same file, byte for byte. Needs matplotlib (bench/peers.sh installs it).
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import matplotlib
from matplotlib.figure import Figure

from bench.harness import HERE, Line
from bench.report import GIB, UNITS, Section, Series

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH: Final = 7.2
BAR: Final = 0.24
"""Height of a bar with its share of the gap, and below the height of what else belongs to a panel (inches)."""
PANEL: Final = 0.5
TITLE: Final = 64
"""Characters in a line of a panel's title."""
OURS: Final = "#1f6fb2"
LIMIT: Final = "#4d4d4d"
PEER: Final = "#b5bbc1"
STYLE: Final[Any] = {
    "svg.fonttype": "none",  # text stays text: small, and a reader can search it
    "svg.hashsalt": "ktaskfs",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
}
METADATA: Final = {"Date": None, "Creator": None}
"""Neither the day nor matplotlib's version: they would change a file whose figures have not changed."""


class Plot(Protocol):
    """One file: ``docs/plots/NAME.svg``, drawn from ``bench/results/SOURCE.json``."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def sections(self) -> str:
        """A regular expression, searched in the titles of sections."""

    def draw(self, sections: Sequence[Section]) -> Figure:
        """The picture of those sections, of which each has series."""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A panel for each section, a bar for each series as long as its median, with its quartiles as whiskers.

    ``throughput`` shows GiB/s instead of the section's unit. ``series`` is searched in the names of those wanted.
    """

    name: str
    source: str
    sections: str
    throughput: bool = False
    series: str = ""

    def draw(self, sections: Sequence[Section]) -> Figure:
        wanted = [[one for one in part.series if re.search(self.series, one.name)] for part in sections]
        heights = [PANEL + BAR * len(some) for some in wanted]
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.3), layout="constrained")
        axes = figure.subplots(
            len(sections), sharex=self.throughput, squeeze=False, gridspec_kw={"height_ratios": heights}
        )[:, 0]
        for axis, section, some in zip(axes, sections, wanted, strict=True):
            self._panel(axis, section, some)
        axes[-1].set_xlabel("GiB/s" if self.throughput else UNITS[sections[-1].unit][1])
        return figure

    def _panel(self, axis: Any, section: Section, some: Sequence[Series]) -> None:
        for place, series in enumerate(some):
            value, low, high = (self._shown(number, series, section) for number in (series.median, *series.spread))
            low, high = min(low, high, value), max(low, high, value)  # throughput turns them round
            whiskers = [[value - low], [high - value]]
            axis.barh(place, value, 0.72, color=colour(series.name), xerr=whiskers, error_kw={"elinewidth": 0.8})
            axis.annotate(
                f"{value:.3g}" if value < 100 else f"{value:.0f}",
                (high, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
            )
        axis.set_yticks(range(len(some)), [series.name.replace("`", "") for series in some])
        axis.tick_params(axis="y", length=0)
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        axis.margins(x=0.12)
        axis.set_title(title(section))

    def _shown(self, value: float, series: Series, section: Section) -> float:
        if not self.throughput:
            return value * UNITS[section.unit][0]
        return (series.work or section.work or 0) / value / GIB


@dataclass(frozen=True, kw_only=True)
class TimeAgainstSize:
    """The medians of each group of series by their work, with quartiles, and the line of least squares."""

    name: str
    source: str
    sections: str

    def draw(self, sections: Sequence[Section]) -> Figure:
        figure = Figure(figsize=(WIDTH, 3.2 * len(sections)), layout="constrained")
        for axis, section in zip(figure.subplots(len(sections), squeeze=False)[:, 0], sections, strict=True):
            factor, unit = UNITS[section.unit]
            for group in dict.fromkeys(series.group for series in section.series):
                self._group(axis, group, [one for one in section.series if one.group == group], factor)
            axis.set_xlim(left=0)
            axis.set_ylim(bottom=0)
            axis.set_xlabel("GiB")
            axis.set_ylabel(unit)
            axis.set_title(title(section))
            axis.legend()
        return figure

    def _group(self, axis: Any, group: str, some: Sequence[Series], factor: float) -> None:
        sizes = [(series.work or 0) / GIB for series in some]
        medians = [series.median for series in some]
        line = Line.through(list(zip(sizes, medians, strict=True)))
        below = [(series.median - series.spread[0]) * factor for series in some]
        above = [(series.spread[1] - series.median) * factor for series in some]
        sign = "−" if line.intercept < 0 else "+"
        law = f"{line.slope * 1e3:.1f} ms/GiB {sign} {abs(line.intercept) * 1e3:.1f} ms"
        label = f"{group}: {law}, R² {line.r_squared:.4f}"
        shown = [median * factor for median in medians]
        axis.errorbar(
            sizes, shown, yerr=[below, above], fmt="o", ms=4, elinewidth=0.8, color=colour(group), label=label
        )
        ends = (0, max(sizes))
        style = "-" if group.startswith("ktaskfs") else "--"
        axis.plot(ends, [(line.intercept + line.slope * x) * factor for x in ends], style, lw=1, color=colour(group))


PLOTS: Final[tuple[Plot, ...]] = (
    Bars(name="preallocation", source="preallocation", sections="^Preallocating ", throughput=True),
    TimeAgainstSize(name="preallocation-size", source="preallocation", sections="^Time against size"),
    Bars(name="clearing", source="main_job", sections="^`clear`", throughput=True),
    Bars(name="copying", source="data_operations", sections="^`copy`", throughput=True),
    Bars(name="calls", source="calls", sections="^Open, read, close, (no|[0-9]+) busy .*: median"),
    Bars(name="checksums", source="data_operations", sections="^`(checksum|compare)", throughput=True),
)


def colour(name: str) -> str:
    """ktaskfs stands out, the limit in C is dark, and all others are alike."""
    if name.startswith("ktaskfs"):
        return OURS
    return LIMIT if name.startswith("C,") else PEER


def title(section: Section) -> str:
    """Without Markdown, in lines that fit beside the names of the bars."""
    return textwrap.fill(section.title.replace("`", ""), TITLE)


def load(path: Path) -> list[Section]:
    """The sections that a benchmark has written, as far as a plot needs them."""
    return [
        Section(part["title"], [Series(**each) for each in part["series"]], unit=part["unit"], work=part["work"])
        for part in json.loads(path.read_text())["sections"]
    ]


def write(plot: Plot, results: Path, output: Path) -> str:
    """Draw one plot, if it has data; returns a sentence for the reader."""
    data = results / f"{plot.source}.json"
    if not data.exists():
        return f"{plot.name}: no {data}"
    sections = [part for part in load(data) if part.series and re.search(plot.sections, part.title)]
    if not sections:
        return f"{plot.name}: no section {plot.sections!r} with series in {data}"
    path = output / f"{plot.name}.svg"
    with matplotlib.rc_context(STYLE):
        plot.draw(sections).savefig(path, metadata=METADATA)
    return f"{plot.name}: {path}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description="Plots of what was measured")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where NAME.json are (bench/results)")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs/plots", help="directory (docs/plots)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for plot in PLOTS:
        print(write(plot, arguments.results, arguments.output))


if __name__ == "__main__":
    main()
