"""What a test needs of the machine follows from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).resolve().parents[1]

FAST: Final = "fast"
MOUNT: Final = "mount"
MACHINE: Final = "machine"

TIERS: Final = {
    ".": FAST,
    "ansible": MACHINE,
    "architecture": FAST,
    "attacks": MOUNT,
    "bench": FAST,
    "cli": MOUNT,
    "cli/fleet": FAST,
    "clients": MOUNT,
    "containers": MACHINE,
    "control": FAST,
    "docs": FAST,
    "faults": MOUNT,
    "fleet": MACHINE,
    "fuse": MOUNT,
    "host": FAST,
    "hypervisors": MOUNT,
    "ktask": FAST,
    "memory": MOUNT,
    "mount": MOUNT,
    "numa": MACHINE,
    "operations": MOUNT,
    "operations/base": FAST,
    "packaging": MACHINE,
    "setup": MOUNT,
    "soak": MOUNT,
    "systemd": MACHINE,
    "tasks": FAST,
    "vfs": FAST,
    "worker": FAST,
}
"""The tier of each folder of tests; a folder that is not named has that of the folder around it."""

LONGEST: Final = "numa"
"""The folder whose tests take longest: they wait for a virtual machine."""

ROOT_FIXTURES: Final = frozenset({"root", "place", "any_place", "pool", "pool_2m"})
"""A test of a fast folder that uses one of these is of the tier ``mount``."""


def tier_of(path: Path, *, needs_root: bool = False) -> str | None:
    """The tier of the tests in a file; None where no folder around it has one, as outside of the project."""
    if not path.is_relative_to(TESTS):
        return None
    inside = path.relative_to(TESTS)
    if len(inside.parts) == 1:
        tier: str | None = TIERS["."]
    else:
        named = (TIERS.get(str(folder)) for folder in inside.parents if str(folder) != ".")
        tier = next((each for each in named if each is not None), None)
    return MOUNT if tier == FAST and needs_root else tier


def turn_of(path: Path) -> tuple[bool, int, str]:
    """A key to sort files by, for several processes that share them: those that take long come first.

    Then neighbours are of different folders: tests of one folder often wait for each other, for the pool of huge pages.
    Only the files of a systemd that is booted for all of them stay together.
    """
    tier = tier_of(path)
    name = "" if tier == MACHINE else path.name
    return not path.is_relative_to(TESTS / LONGEST), [MACHINE, MOUNT, FAST, None].index(tier), name
