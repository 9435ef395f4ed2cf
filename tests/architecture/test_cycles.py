"""No module of the package depends on itself through others, types and imports inside functions included."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "ktaskfs"


def module_names(package: Path) -> dict[str, Path]:
    """Every module below ``package`` by its full name."""
    names: dict[str, Path] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported_modules(path: Path, known: set[str]) -> set[str]:
    """The ``known`` modules that the file imports, at its top, for types only, or in a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:  # ``from package import module`` imports the module, any other name its package
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else node.module or "")
    return found & known


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that reach each other (Tarjan's strongly connected components of more than one)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in sorted(imports[name]):
            if other not in order:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[-len(group) :]
            if len(group) > 1 or name in imports[name]:
                found.append(sorted(group))

    for name in imports:
        if name not in order:
            visit(name)
    return found


def test_a_circle_is_found_wherever_its_imports_stand(tmp_path: Path) -> None:
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "roof.py").write_text("import house.door\n")
    (package / "wall.py").write_text("def build():\n    from house.roof import tiles\n")
    (package / "door.py").write_text("if TYPE_CHECKING:\n    from house import wall\n")
    (package / "path.py").write_text("from house.door import knock\n")
    names = module_names(package)
    imports = {name: imported_modules(path, set(names)) for name, path in names.items()}
    assert circles(imports) == [["house.door", "house.roof", "house.wall"]]


def test_the_package_has_no_circle() -> None:
    names = module_names(PACKAGE)
    imports = {name: imported_modules(path, set(names)) for name, path in names.items()}
    assert circles(imports) == []
