"""Writes bench/RESULTS.md, and a page for each benchmark, from bench/results/NAME.json: ``python -m bench.summary``.

RESULTS.md has a table of all speeds in bytes a second, and the missed goals. The name of a contender shows its kind:
``ktaskfs…`` is ktaskfs, ``C,…`` does the same work in C, ``limit,…`` does less and shows what is possible, all
others are the usual tools.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.report import GIB, Goal, Section, Series, Table, is_met, markdown, shown, table, verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

OURS: Final = "ktaskfs"
IN_C: Final = "C,"
LIMIT: Final = "limit,"
MODEL: Final = "model"
"""Not a benchmark's results: bench.model writes docs/explanation/scaling.md from it."""
NOTE: Final = """\
What is measured in bytes a second, each with the threads that make it fastest. *Best alternative*: the fastest of the
tools that a person would use otherwise. *Against* it, and against a program in C that does the same work: how many
times as fast ktaskfs is, in one run on one machine. Compare the figures of two pages only if the table at the end has
the same machine and date for both; otherwise compare ratios."""


@dataclass(frozen=True)
class Results:
    """The output of one benchmark."""

    name: str
    title: str
    command: str
    environment: dict[str, str]
    size: str
    sections: tuple[Section, ...]

    @classmethod
    def read(cls, path: Path) -> Results:
        """Raises OSError, and KeyError or TypeError for a file that is of another form."""
        data = json.loads(path.read_text())
        sections = tuple(map(_section, data["sections"]))
        return cls(path.stem, data["title"], data["command"], data["environment"], data["size"], sections)

    def page(self, *, judge: bool = True) -> str:
        """The whole page in Markdown; ``judge`` adds to each figure whether its goal is met."""
        about = [f"{key}: {value}" for key, value in self.environment.items()]
        about += [f"size {self.size}", f"command `{self.command}`"]
        blocks = [f"# {self.title}", "; ".join(about) + ".", *(table(part, judge=judge) for part in self.sections)]
        return "\n\n".join(blocks) + "\n"

    def write(self, directory: Path) -> None:
        """Write results/NAME.json in ``directory``, and what follows from it. Raises OSError."""
        data = asdict(self)
        path = directory / "results" / f"{data.pop('name')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(data, indent=1) + "\n")
        write_pages(directory)


def _section(data: dict[str, Any]) -> Section:
    parts = {"series": Series, "goals": Goal, "tables": Table}
    return Section(**data | {key: [kind(**each) for each in data[key]] for key, kind in parts.items()})


def write_pages(directory: Path) -> None:
    """Write RESULTS.md in ``directory``, and results/NAME.md beside each results/NAME.json."""
    results = [Results.read(path) for path in sorted((directory / "results").glob("*.json")) if path.stem != MODEL]
    for each in results:
        (directory / "results" / f"{each.name}.md").write_text(each.page())
    (directory / "RESULTS.md").write_text(overview(results))


def overview(results: Iterable[Results]) -> str:
    """The text of RESULTS.md."""
    found = list(results)
    rows = [row for each in found for section in each.sections if (row := _compared(section))]
    header = ["operation", "GiB/s", "best alternative", "against it", "against C"]
    judged = [is_met(goal, part) for each in found for part in each.sections for goal in part.goals if goal.has_bounds]
    missed = [
        f"- [{each.title}](results/{each.name}.md), {section.title}: {goals}. {section.note}".rstrip()
        for each in found
        for section in each.sections
        if (goals := _missed(section))
    ]
    pages = [
        [f"[{each.title}](results/{each.name}.md)", each.environment["machine"], each.environment["date"]]
        for each in found
    ]
    return (
        "\n\n".join(
            [
                "# Results",
                markdown(Table(header, rows)),
                NOTE,
                f"## Goals: {judged.count(True)} met, {judged.count(False)} missed",
                "\n".join(missed) or "None is missed.",
                "## All figures",
                markdown(Table(["benchmark", "machine", "date"], pages)),
            ]
        )
        + "\n"
    )


def _missed(section: Section) -> str:
    """The goals that the section misses, each with its figure."""
    return "; ".join(verdict(goal, section) for goal in section.goals if goal.has_bounds and not is_met(goal, section))


def _compared(section: Section) -> list[str] | None:
    """The row of a section in which different contenders did the same work, with ktaskfs among them."""
    ours = [each for each in section.series if each.name.startswith(OURS)]
    if not ours or section.work is None or any(each.work for each in section.series):
        return None
    best = min(ours, key=lambda each: each.median)
    in_c = [each for each in section.series if each.name.startswith(IN_C)]
    others = [each for each in section.series if not each.name.startswith((OURS, IN_C, LIMIT))]
    row = [section.title, f"{section.work / best.median / GIB:.1f}"]
    if others:
        other = min(others, key=lambda each: each.median)
        row += [other.name, _times(other, best)]
    else:
        row += ["", ""]
    return [*row, _times(min(in_c, key=lambda each: each.median), best) if in_c else ""]


def _times(other: Series, best: Series) -> str:
    return shown(other.median / best.median)


if __name__ == "__main__":
    write_pages(Path(__file__).parent)
