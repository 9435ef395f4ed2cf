"""What holds of every operation: undo and resume are refused in one place, with the operation's own reason."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import NotSupported
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.span import Node

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Runner

OPERATIONS = find_operations()
PAGE = 4096
PAGES = 64
UNITS = {"survey": 1}
"""Positions that a page takes, where they are not bytes."""


@pytest.fixture
def texts(tmpfs: Path) -> dict[str, object]:
    """A file of memory, full of zeros, and another one alike."""
    for name in ("file", "other"):
        (tmpfs / name).write_bytes(bytes(PAGE * PAGES))
    return {"path": tmpfs / "file", "source": tmpfs / "other"}


def spec(operation: str, texts: dict[str, object]) -> dict[str, object]:
    if operation in ("compare", "copy"):
        return texts
    return {"path": texts["path"]} | ({"pattern": "00"} if operation == "verify" else {})


@pytest.mark.parametrize("name", [name for name, each in OPERATIONS.items() if each.no_undo])
def test_what_cannot_be_undone_says_why(runner: Runner, texts: dict[str, object], name: str) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(NotSupported) as caught:
        runner.prepare(name, **spec(name, texts), undo=1)
    assert caught.value.message == f"undo=1: {OPERATIONS[name].no_undo}"
    assert os.listdir("/proc/self/fd") == before


def test_what_can_be_undone() -> None:
    possible = {"fallocate", "migrate", "reserve"}
    assert {name for name, each in OPERATIONS.items() if not each.no_undo} <= possible | {"copy", "free"}
    assert {name for name, each in OPERATIONS.items() if each.no_undo}.isdisjoint(possible)


@pytest.mark.parametrize("name", ["checksum", "compare", "survey", "verify"])
def test_a_result_over_a_part_is_refused(runner: Runner, texts: dict[str, object], name: str) -> None:
    """What was found in the other part is not known any more: the bad memory there would look good."""
    unit = UNITS.get(name, PAGE)
    before = os.listdir("/proc/self/fd")
    rest = [Node(unit, unit, -1), Node(3 * unit, PAGES * unit - 3 * unit, -1)]
    with pytest.raises(NotSupported) as caught:
        runner.prepare(name, rest, **spec(name, texts))
    assert caught.value.message == f"resume: {OPERATIONS[name].no_resume}; start the task anew"
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("name", ["checksum", "compare", "survey", "verify"])
def test_a_task_of_which_nothing_was_done_is_begun_anew(runner: Runner, texts: dict[str, object], name: str) -> None:
    unit = UNITS.get(name, PAGE)
    whole = [Node(0, unit, -1), Node(unit, PAGES * unit - unit, -1)]
    result = runner.result(runner.prepare(name, whole, **spec(name, texts)))
    assert result == runner.result(runner.prepare(name, **spec(name, texts)))
