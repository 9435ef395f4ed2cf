"""Holds the layers of ARCHITECTURE.md: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGE = Path(__file__).resolve().parents[2] / "ktaskfs"

EVERYBODY = {"descriptors", "errors", "libc", "mounts", "quota", "span", "units", "version"}
FAMILIES = {path.name for path in (PACKAGE / "operations").iterdir() if path.is_dir()} - {"base", "__pycache__"}
OPERATIONS = {"operations", "operations/base"} | {f"operations/{family}" for family in FAMILIES}
MAY_IMPORT: dict[str, set[str]] = {
    **{common: set() for common in EVERYBODY},
    "host": set(),
    "ktask": set(),
    "vfs": set(),
    "progress": set(),
    "memory": {"host"},
    "operations": set(),
    "operations/base": {"operations", "ktask", "host"},
    **{f"operations/{family}": {"operations/base", "memory", "ktask", "host"} for family in FAMILIES},
    "worker": OPERATIONS | {"ktask", "host", "progress"},
    "tasks": {"worker", "host", "progress"} | OPERATIONS,
    "control": {"vfs", "tasks", "host"} | OPERATIONS,
    "fuse": {"vfs"},
    "config": {"tasks"},
    "systemd": set(),
    "daemon": {"control", "fuse", "host", "ktask", "progress", "tasks", "vfs", "worker", "config", "systemd"}
    | OPERATIONS,
    "cli": set(),
}
EXCEPTIONS = {
    ("control/task_text.py", "progress"),
    ("cli/mount.py", "tasks"),
    *(("cli/mount.py", layer) for layer in ("daemon", "config", "systemd")),
    *(("cli/mount.py", layer) for layer in ("fuse", "operations/base", "worker")),
}
"""Types for mypy only: the text of a task is made from a snapshot, and the log is in the state directory. Of the
command, only ``mount`` becomes the daemon; the rest uses only the mounted files, like any program. It checks the mount
point and forks the spawner before it imports the rest."""

ONLY_HERE = {
    "pyfuse3": {"fuse"},
    "trio": {"daemon", "control", "fuse", "tasks", "vfs"},
    "rich": {"cli"},
    "textual": {"cli"},
    "ClusterShell": {"cli"},
}
"""Packages that only some layers may know."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    return layer_named(path.relative_to(PACKAGE).with_suffix("").parts)


def layer_named(parts: Sequence[str]) -> str:
    """The layer of a module: its first name, and in ``operations`` the family too."""
    if parts[0] == "operations" and len(parts) > 1 and parts[1] in FAMILIES | {"base"}:
        return f"operations/{parts[1]}"
    return parts[0]


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at any place in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "ktaskfs" else set()
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    layer = layer_of(path)
    if layer == "__init__":
        assert imported(path) == set()
        return
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "ktaskfs" and rest:
            other = layer_named(rest.split("."))
            allowed = MAY_IMPORT[layer] | EVERYBODY | {layer}
            exception = (str(path.relative_to(PACKAGE)), other) in EXCEPTIONS
            assert other in allowed or exception, f"{layer} may not import {name}"
        if top in ONLY_HERE:
            assert layer in ONLY_HERE[top], f"{layer} may not know {top}"


def test_the_command_knows_nothing_but_the_mounted_files() -> None:
    """Except ``mount``, which no other module may import to bypass this, save ``main``, which runs it."""
    for path in sorted((PACKAGE / "cli").rglob("*.py")):
        others = {name for name in imported(path) if name.startswith("ktaskfs.")}
        allowed = {f"ktaskfs.{each}" for each in ("errors", "units", "version")}
        beyond = {name for name in others - allowed if not name.startswith("ktaskfs.cli")}
        assert path.name == "mount.py" or beyond == set(), path
        assert path.name == "main.py" or "ktaskfs.cli.mount" not in others, path


def test_two_modules_know_clustershell() -> None:
    knowing = [path for path in MODULES if any(name.startswith("ClusterShell") for name in imported(path))]
    assert knowing == [PACKAGE / "cli/fleet/connections.py", PACKAGE / "cli/fleet/workers.py"]


def test_every_layer_is_known() -> None:
    assert {layer_of(path) for path in MODULES} - {"__init__"} <= MAY_IMPORT.keys()


def test_no_module_state() -> None:
    """Module level holds only definitions and constants: no assigned value is a mutable display."""
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.List | ast.Set):
                target = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
                assert target == "__all__", f"{path}: {target} is a mutable value at module level"
