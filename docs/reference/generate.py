"""Writes what the reference takes from declarations: ``python docs/reference/generate.py`` after one has changed.

``operations/NAME.md`` has a part for each operation between two marks. What is written by hand stands below the second
one: the format of the result, and what is refused. ``README.md`` has the table of operations between the same marks,
``command.md`` the help of each subcommand.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest import mock

from ktaskfs.cli.arguments import parser
from ktaskfs.host.target import MEMORY
from ktaskfs.operations.base.parameters import TaskParameters
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.operations.ranges._range import RangeOperation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ktaskfs.operations.base.operation import SpecWord
    from ktaskfs.operations.base.parameters import Parameter

HERE: Final = Path(__file__).resolve().parent
BEGINS: Final = "<!-- from the declarations: docs/reference/generate.py writes what stands between these marks -->"
ENDS: Final = "<!-- written by hand from here on -->"
COMMON: Final = TaskParameters.declared
PAST_END: Final = "The range may end past the end of the file."


def table(parameters: Iterable[Parameter]) -> str:
    """Parameters as a table of Markdown."""
    rows = ["| parameter | type | default | meaning |", "|---|---|---|---|"]
    for each in parameters:
        default = "must be given" if each.required else f"`{each.default_text()}`"
        rows.append(f"| `{each.name}` | {_cell(each.kind.name)} | {default} | {_cell(each.help)} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def operation_text(operation: SpecWord) -> str:
    """The generated part of an operation's page."""
    parts = [f"# {operation.name}"]
    common = {each.name: each for each in COMMON}
    for each in operation.meanings:
        if each.target:
            parts.append(f"## Of {each.target}")
        parts.append(each.description)
        own = [one for one in each.declared if common.get(one.name) != one]
        parts.append(table(own))
        parts.append(
            f"Counts {each.units}. `undo=1`: {f'refused, {each.no_undo}' if each.no_undo else 'possible'}. "
            f"Resume of a part: {f'refused, {each.no_resume}' if each.no_resume else 'possible'}."
            + (f" {PAST_END}" if isinstance(each, RangeOperation) and each.past_end else "")
        )
    parts.append("It also takes the [parameters of every operation](../README.md#parameters-of-every-operation).")
    return "\n\n".join(parts)


def index_text() -> str:
    """The generated part of README.md."""
    rows = ["| operation | works on | counts |", "|---|---|---|"]
    for name, operation in find_operations().items():
        targets = "; ".join(each.target or _works_on(each) for each in operation.meanings)
        rows.append(f"| [{name}](operations/{name}.md) | {targets} | {operation.units} |")
    return "\n".join(rows) + "\n\n## Parameters of every operation\n\n" + table(COMMON)


def _works_on(operation: SpecWord) -> str:
    """In words, by what a spec has to name."""
    names = {each.name for each in operation.declared}
    if "path" not in names:
        return "a process" if "pid" in names else "pools of huge pages"
    if "cross_mounts" in names:
        return "a directory, or a file of a disk"
    kind = "a file of memory" if isinstance(operation, RangeOperation) and operation.kinds == MEMORY else "a file"
    return kind + (", also by a process that has it mapped" if "pid" in names else "")


def command_text() -> str:
    """The help of the command and of each subcommand, at a fixed width, without colours (Python 3.14 has them)."""
    top = parser({})
    commands = next(each for each in top._actions if isinstance(each, argparse._SubParsersAction))
    with mock.patch.dict(os.environ, COLUMNS="100", NO_COLOR="1"):
        parts = [f"```text\n{top.format_help().rstrip()}\n```"]
        for name, each in commands.choices.items():
            parts.append(f"## ktaskfs {name}\n\n```text\n{each.format_help().rstrip()}\n```")
    return "\n\n".join(parts)


def merged(path: Path, generated: str) -> str:
    """The page with its generated part anew; what stands before and after it is kept."""
    before, after = "", ""
    if path.exists():
        before, _, rest = path.read_text(encoding="utf-8").partition(BEGINS)
        after = rest.partition(ENDS)[2]
    return f"{before}{BEGINS}\n\n{generated}\n\n{ENDS}{after or chr(10)}"


def pages() -> dict[Path, str]:
    """The text of each page that has a generated part."""
    made = {HERE / "README.md": index_text(), HERE / "command.md": command_text()}
    made |= {HERE / f"operations/{name}.md": operation_text(each) for name, each in find_operations().items()}
    return {path: merged(path, text) for path, text in made.items()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path, file=sys.stderr)
