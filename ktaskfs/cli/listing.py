"""``ktaskfs ls`` and ``ktaskfs show``: the current status of tasks."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.cli.complain import say
from ktaskfs.cli.mounted import Mounted
from ktaskfs.cli.names import chosen, matching
from ktaskfs.cli.reports import for_people
from ktaskfs.cli.tables import rows

if TYPE_CHECKING:
    import argparse


NO_FILE: Final = frozenset({"name", "queue", "replace"})
"""Parameters of a spec that have no file in a task's directory."""


def ls(given: argparse.Namespace) -> int:
    """List the tasks, or those that match. Raises KtaskfsError."""
    mounted = Mounted(given.mount)
    if given.json:
        tasks = json.loads(mounted.read("info/tasks.json"))
        wanted = _wanted([each["name"] for each in tasks], given.name)
        lines = [json.dumps(each) for each in tasks if each["name"] in wanted]
    else:
        header, *rows = mounted.read("info/tasks").splitlines()
        wanted = _wanted([row.split()[0] for row in rows], given.name)
        lines = [header, *(row for row in rows if row.split()[0] in wanted)]
    for line in lines:
        print(line)
    return 0


def _wanted(names: list[str], patterns: list[str]) -> set[str]:
    return {name for pattern in patterns for name in matching(names, pattern)} if patterns else set(names)


def show(given: argparse.Namespace) -> int:
    """Show each task in full. Raises KtaskfsError."""
    mounted = Mounted(given.mount)
    for number, name in enumerate(chosen(mounted, given.name, say)):
        if given.json:
            print(json.dumps(_all_of(mounted, name)))
        else:
            _print_all_of(mounted, name, first=number == 0)
    return 0


def _all_of(mounted: Mounted, name: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(mounted.read(f"tasks/{name}/stat.json"))
    parameters = {}
    if (operation := figures["operation"]) is not None:
        declared = [row["name"] for row in rows(mounted.read(f"operations/{operation}/parameters"))]
        for key in declared:
            if key not in NO_FILE:
                value = mounted.read(f"tasks/{name}/{key}").rstrip("\n")
                parameters[key] = None if value == "-" else value
    threads = [{key: _value(text) for key, text in row.items()} for row in rows(mounted.read(f"tasks/{name}/threads"))]
    result = mounted.read(f"tasks/{name}/result")
    return {**figures, "parameters": parameters, "thread_list": threads, "result": result}


def _value(text: str) -> str | int | None:
    """A cell of a table for JSON."""
    return int(text) if text.isdigit() else None if text == "-" else text


def _print_all_of(mounted: Mounted, name: str, *, first: bool) -> None:
    if not first:
        print()
    print(mounted.read(f"tasks/{name}/status"), end="")
    threads = mounted.read(f"tasks/{name}/threads")
    if threads.count("\n") > 1:
        print(f"\n{threads}", end="")
    if result := mounted.read(f"tasks/{name}/result"):
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(f"\n{for_people(result) if os.isatty(1) else result}"))
