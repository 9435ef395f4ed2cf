"""Rules about the source itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ktaskfs

ROOT = Path(ktaskfs.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
SHARED_PAGE = ROOT / "progress" / "worker_page.py"
"""Maps the one page that a worker shares with its daemon, which is no target."""
TOUCHING = {"memset", "memmove", "string_at", "wstring_at", "from_buffer"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_mapping_is_touched_from_user_code(path: Path) -> None:
    """A touch can end in SIGBUS. The address of a mapping is made into memory in one file, and there only passed on."""
    if path == SHARED_PAGE:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert "mmap" not in names, f"line {node.lineno}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in TOUCHING, f"line {node.lineno}: {node.attr}"
            if node.attr == "madvise":
                assert isinstance(node.value, ast.Name), f"line {node.lineno}: the mmap module's holds the lock"
                assert node.value.id == "syscalls", f"line {node.lineno}"
            if node.attr == "from_address":
                assert path == ROOT / "host" / "mapping.py", f"line {node.lineno}"


def test_the_view_of_a_mapping_is_only_sliced_for_a_system_call() -> None:
    tree = ast.parse((ROOT / "host" / "mapping.py").read_text())
    views = [n for n in ast.walk(tree) if isinstance(n, ast.Subscript) and ast.unparse(n.value) == "self._view"]
    assert views
    assert all(isinstance(view.ctx, ast.Load) and isinstance(view.slice, ast.Slice) for view in views)
    outside = [p for p in SOURCES if "_view" in p.read_text() and "from_address" in p.read_text()]
    assert outside == [ROOT / "host" / "mapping.py"]
