"""The folder of a test decides which privileges and machine it needs."""

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
    "cli": FAST,
    "clients": MOUNT,
    "containers": MACHINE,
    "control": FAST,
    "docs": FAST,
    "faults": MOUNT,
    "fleet": MACHINE,
    "fuse": FAST,
    "fuzz": FAST,
    "host": FAST,
    "hypervisors": FAST,
    "ktask": FAST,
    "memory": MOUNT,
    "mount": MOUNT,
    "numa": MACHINE,
    "operations": MOUNT,
    "operations/base": FAST,
    "packaging": MACHINE,
    "progress": FAST,
    "setup": MOUNT,
    "slurm": MACHINE,
    "soak": MOUNT,
    "support": FAST,
    "systemd": MACHINE,
    "tasks": FAST,
    "vfs": FAST,
    "worker": FAST,
}
"""The tier of each folder of tests; a folder that is not named has that of the folder around it."""

BESIDE: Final = frozenset({"bench", "fuse", "setup"})
"""Folders whose tests run in the process of the machines, so that both processes take the same time."""

ROOT_FIXTURES: Final = frozenset({"root", "mounted", "mount_maker", "place", "any_place", "pool", "pool_2m"})
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


def process_of(path: Path) -> str:
    """Which of two processes runs the tests of a file.

    Tests that wait for other machines, and those in BESIDE, have one process. All others share the second one: they
    would wait for each other or for the pool of huge pages, or see each other's load.
    """
    beside = path.is_relative_to(TESTS) and path.relative_to(TESTS).parts[0] in BESIDE
    return MACHINE if beside or tier_of(path) == MACHINE else MOUNT
