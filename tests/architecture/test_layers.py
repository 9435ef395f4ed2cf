"""Who may import whom: the code keeps to the table of layers in ARCHITECTURE.md."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PACKAGE = ROOT / "ktaskfs"
FAMILIES = {path.name for path in (PACKAGE / "operations").iterdir() if path.is_dir()} - {"base", "__pycache__"}
SECTION = (ROOT / "ARCHITECTURE.md").read_text().partition("\n## The layers\n")[2].partition("\n## ")[0]
NAME = re.compile(r"`([^`]+?)(?:/|\.py)?`")
ONE_FILE = re.compile(r"`(\w+\.py)`:(.*)")


def rows() -> list[list[str]]:
    """The cells of the table, without its heading."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in SECTION.split("\n") if line[:1] == "|"][2:]


def table() -> dict[str, set[str]]:
    """The layers that each layer may import, and those that a single file may import besides, as ``cli/mount.py``."""
    found: dict[str, set[str]] = {common: set() for common in EVERYBODY}
    for first, _, cell in rows():
        (named,) = NAME.findall(first)
        for layer in [named.replace("FAMILY", each) for each in sorted(FAMILIES)] if "FAMILY" in named else [named]:
            found[layer] = set()
            for part in cell.split(";"):
                one = ONE_FILE.fullmatch(part.strip())
                found[f"{layer}/{one[1]}" if one else layer] = set(NAME.findall(one[2] if one else part))
    return found


EVERYBODY = set(NAME.findall(SECTION.partition("and also:")[0]))
MAY_IMPORT = table()

ONLY_HERE = {
    "pyfuse3": {"fuse"},
    "trio": {"daemon", "control", "fuse", "tasks", "user_threads", "vfs"},
    "rich": {"cli"},
    "textual": {"cli"},
    "ClusterShell": {"cli"},
}
"""Packages that only some layers may know."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    return layer_named(path.relative_to(PACKAGE).with_suffix("").parts)


def layer_named(parts: Sequence[str]) -> str:
    """The layer of a module: its first name, and in ``operations`` the family too, or else the base."""
    if parts[0] == "operations":
        return f"operations/{parts[1]}" if len(parts) > 1 and parts[1] in FAMILIES else "operations/base"
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
    allowed = {layer} | EVERYBODY | MAY_IMPORT[layer] | MAY_IMPORT.get(str(path.relative_to(PACKAGE)), set())
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "ktaskfs" and rest:
            assert layer_named(rest.split(".")) in allowed, f"{layer} may not import {name}"
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


def test_the_table_has_every_layer_and_nothing_else() -> None:
    files = {str(path.relative_to(PACKAGE)) for path in MODULES}
    assert {layer_of(path) for path in MODULES} - {"__init__"} == MAY_IMPORT.keys() - files
    assert {"errors", "units"} <= EVERYBODY
    assert set().union(*MAY_IMPORT.values()) <= MAY_IMPORT.keys()


RULE = re.compile(r"\b[Ii]mports ((?:no other layer|``).*?)\.(?= |$)")
"""The sentence of a docstring with what its package imports: the layer, and after a semicolon a single file."""


def said(path: Path, layer: str) -> dict[str, set[str]]:
    """Who may import what, by the docstring of a package."""
    text = " ".join((ast.get_docstring(ast.parse((path / "__init__.py").read_text())) or "").split())
    (sentence,) = RULE.findall(text)
    first, *single = [re.findall(r"``([\w/.]+)``", part) for part in sentence.split(";")]
    return {layer: set(first)} | {f"{layer}/{file}": set(names) for file, *names in single}


@pytest.mark.parametrize("layer", [each for each in MAY_IMPORT if (PACKAGE / each).is_dir()])
def test_the_docstring_of_a_package_says_what_the_table_says(layer: str) -> None:
    """That of ``operations`` speaks for the families."""
    of_family = layer.startswith("operations/") and layer != "operations/base"
    entries = {entry: MAY_IMPORT[entry] for entry in MAY_IMPORT if entry == layer or entry.startswith(f"{layer}/")}
    assert said(PACKAGE / "operations" if of_family else PACKAGE / layer, layer) == entries


def test_the_table_permits_nothing_that_no_module_needs() -> None:
    """The families share a row: what one of them needs, all may import."""
    used: dict[str, set[str]] = {entry: set() for entry in MAY_IMPORT}
    for path in MODULES:
        others = {layer_named(name.split(".")[1:]) for name in imported(path) if name.startswith("ktaskfs.")}
        layer = layer_of(path)
        row = {f"operations/{each}" for each in FAMILIES} if layer.removeprefix("operations/") in FAMILIES else {layer}
        for entry in (row | {str(path.relative_to(PACKAGE))}) & used.keys():
            used[entry] |= others
    assert {entry: allowed - used[entry] for entry, allowed in MAY_IMPORT.items() if allowed - used[entry]} == {}


def test_no_module_state() -> None:
    """Module level holds only definitions and constants: no assigned value is a mutable display."""
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.List | ast.Set):
                target = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
                assert target == "__all__", f"{path}: {target} is a mutable value at module level"
