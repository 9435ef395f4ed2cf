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
IN_HANDS = ROOT / "memory" / "hand_code.py"
"""Functions that only hands call, because the process may die; only these are for the worker."""
OPENERS = {"open_hands", "open_tree_hands"}
FOR_THE_WORKER = {"TouchedFile", *OPENERS}
TOUCHING = {"memset", "memmove", "string_at", "wstring_at", "from_buffer"}

LINES_MAX = 350
REPOSITORY = ROOT.parent


SAME_NAMES = {
    "HandCode": "the code of hands of each operation",
    "doctor": "the command, and the same with --hosts",
    "ls": "the command, and the same with --hosts",
    "run": "the command, the same with --hosts, and what a program calls to run a ktask",
    "mount": "the command, and mount(2)",
    "main": "of each program",
    "helper_limit": "the same limit, of a ktask alone and of all tasks together; the layers may not import each other",
}
"""Names of classes and functions that several modules have, and why."""


def test_every_file_is_short() -> None:
    files = [
        path
        for folder in ("ktaskfs", "tests", "bench", "ansible")
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
    ]
    assert len(files) > 100
    assert [str(path) for path in files if len(path.read_text().splitlines()) >= LINES_MAX] == []


def test_one_name_is_for_one_thing() -> None:
    """Of classes and public functions; those of operations of one name, on several targets, are named alike."""
    places: dict[str, list[Path]] = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name.lstrip("_"), []).append(path.relative_to(ROOT))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path.relative_to(ROOT))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    of_operations = {
        name
        for name, found in twice.items()
        if len({each.name for each in found}) == 1 and all(each.parts[0] == "operations" for each in found)
    }
    assert of_operations
    assert twice.keys() - of_operations == SAME_NAMES.keys()


def test_a_plain_value_is_a_named_tuple() -> None:
    """Python compiles the methods of each dataclass, and a start of the mount waits for that."""
    classes = [
        node for path in SOURCES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
    ]
    bases = {ast.unparse(base) for each in classes for base in each.bases}
    frozen = [each for each in classes if any("frozen=True" in ast.unparse(by) for by in each.decorator_list)]
    assert frozen
    plain = [each.name for each in frozen if each.name not in bases and not _is_more_than_a_tuple(each)]
    assert plain == []


def _is_more_than_a_tuple(value: ast.ClassDef) -> bool:
    return any(word in ast.unparse(value) for word in ("def __post_init__", "cached_property", "field(", "kw_only="))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_mapping_is_touched_from_user_code(path: Path) -> None:
    """A touch can end in SIGBUS. The address of a mapping is made into memory in one file, and there only passed on."""
    if path in (SHARED_PAGE, IN_HANDS):
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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_touches_is_called_in_hands_only(path: Path) -> None:
    """Only in classes named ``_HandCode``, which are only made for these openers of hands."""
    tree = ast.parse(path.read_text())
    imported = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "ktaskfs.memory.hand_code"]
    touching = {alias.name for n in imported for alias in n.names} - FOR_THE_WORKER | {"mapped"}
    if not imported:
        return
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "_HandCode"]
    assert len(classes) == 1
    inside = {id(n) for n in ast.walk(classes[0])}
    for node in ast.walk(tree):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        assert name not in touching or id(node) in inside, f"line {getattr(node, 'lineno', 0)}: {name}"
    made = [n for n in ast.walk(tree) if isinstance(n, ast.Assign) and "_HandCode(" in ast.unparse(n.value)]
    assert [ast.unparse(n.targets[0]) for n in made] == ["touch"]
    uses = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "touch" and isinstance(n.ctx, ast.Load)]
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) in OPENERS]
    assert [use in call.args for use, call in zip(uses, calls, strict=True)] == [True]


def test_the_view_of_a_mapping_is_only_sliced_for_a_system_call() -> None:
    tree = ast.parse((ROOT / "host" / "mapping.py").read_text())
    views = [n for n in ast.walk(tree) if isinstance(n, ast.Subscript) and ast.unparse(n.value) == "self._view"]
    assert views
    assert all(isinstance(view.ctx, ast.Load) and isinstance(view.slice, ast.Slice) for view in views)
    outside = [p for p in SOURCES if "_view" in p.read_text() and "from_address" in p.read_text()]
    assert outside == [ROOT / "host" / "mapping.py"]


BLOCKING = {"acquire", "communicate", "join", "result", "wait"}
"""Methods whose only argument may be a time limit."""


def test_threads_of_the_event_loop_are_started_in_one_place() -> None:
    """Each start may fail, and must not end the daemon."""
    starting = [path.name for path in SOURCES if "to_thread.run_sync" in path.read_text()]
    assert starting == ["user_threads.py"]


def test_a_hang_is_bounded_by_the_deadline() -> None:
    """A number of seconds is too short where processors are emulated, and KTASKFS_TEST_PATIENCE does not extend it."""
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for path in sorted((REPOSITORY / "tests").rglob("*.py"))
        for number in _fixed_limits(ast.parse(path.read_text()))
    ]
    assert found == []


def _fixed_limits(tree: ast.Module) -> list[int]:
    """Lines with a limit of ten seconds or more as a plain number, as an argument or the default of a parameter."""
    limits: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            limits += [each.value for each in node.keywords if each.arg == "timeout"]
            if isinstance(node.func, ast.Attribute) and node.func.attr in BLOCKING and len(node.args) == 1:
                limits += node.args
        elif isinstance(node, ast.arguments):
            positional = [*node.posonlyargs, *node.args]
            named = [*positional[len(positional) - len(node.defaults) :], *node.kwonlyargs]
            defaults = [*node.defaults, *node.kw_defaults]
            limits += [value for each, value in zip(named, defaults, strict=True) if each.arg == "timeout"]
    return [
        each.lineno
        for each in limits
        if isinstance(each, ast.Constant) and isinstance(each.value, int | float) and each.value >= 10
    ]
