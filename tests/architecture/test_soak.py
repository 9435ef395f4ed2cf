"""The long run does all that ktaskfs can do."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import ktaskfs.operations
from ktaskfs.operations.base.registry import BASE, find_operations
from tests.soak.actor import operations_of
from tests.soak.scenarios import Player


def operations() -> set[str]:
    """FAMILY/NAME of each file of an operation."""
    found = set()
    for family in pkgutil.iter_modules(ktaskfs.operations.__path__):
        if family.ispkg and family.name != BASE:
            inside = pkgutil.iter_modules([str(Path(ktaskfs.operations.__path__[0]) / family.name)])
            found |= {f"{family.name}/{each.name}" for each in inside if not each.name.startswith("_")}
    return found


def test_every_operation_is_in_a_scenario() -> None:
    """Of root as the first actor, who has all of them."""
    player = Player(Path(), Path(), "root", 0, 1)
    used = {operation for scenario in player.scenarios() for operation in operations_of(scenario)}
    assert used == operations(), "see ``uses`` in tests/soak/actor.py"
    assert {each.rpartition("/")[2] for each in used} == set(find_operations())


def test_ordinary_users_do_all_that_needs_no_privilege() -> None:
    player = Player(Path(), Path(), "a", 0, 1)
    used = {operation for scenario in player.scenarios() for operation in operations_of(scenario)}
    assert operations() - used == {"pools/reserve"}
