"""A new operation is one file: the registry finds it, and no other file changes."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import NotSupported
from ktaskfs.operations.base.registry import find_operations

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

    from tests.support.runner import Runner

OPERATION = '''
"""An operation in one file."""


from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.base.parameters import COUNT, TaskParameters, parameter
from ktaskfs.span import NO_NODE, Node
from ktaskfs.units import PAGES


class Parameters(TaskParameters):
    units: int = parameter(COUNT, "units to count")


class {title}(Operation[Parameters]):
    name = "{name}"
    description = "Counts."
    units = PAGES
    parameters = Parameters
    no_undo = "counting changes nothing"

    def prepare(self, preparation):
        counted = []
        control = preparation.control(lambda start, end: counted.append(end - start), least=2, most=8)
        nodes = [Node(0, preparation.parameters.units, NO_NODE)]
        return preparation.plan(nodes, control, lambda outcome: f"{{sum(counted)}} of {{outcome.units_done}}")
'''


class Package:
    """A package of operations with the families ``colours`` and ``shapes``, in a separate directory."""

    def __init__(self, directory: Path, name: str) -> None:
        self.root = directory / name
        self._name = name
        for folder in (self.root, self.root / "base", self.root / "colours", self.root / "shapes"):
            folder.mkdir()
            (folder / "__init__.py").touch()

    def add(self, path: str, *names: str) -> None:
        """A file with an operation for each of ``names``."""
        texts = [OPERATION.format(name=name, title=f"{name.title()}{index}") for index, name in enumerate(names)]
        (self.root / path).write_text("\n".join(texts))

    def load(self) -> ModuleType:
        """The package, imported."""
        importlib.invalidate_caches()
        return importlib.import_module(self._name)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    monkeypatch.syspath_prepend(tmp_path)
    name = "throwaway_operations"
    yield Package(tmp_path, name)
    for each in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[each]


def test_one_file_is_a_new_operation(package: Package, runner: Runner) -> None:
    package.add("colours/paint.py", "paint")
    package.add("shapes/draw.py", "draw")
    found = find_operations(package.load())
    assert list(found) == ["draw", "paint"]
    (paint,) = found["paint"].meanings
    assert [each.name for each in paint.declared if each.required] == ["units"]
    parameters = paint.parameters(units=100)
    plan = paint.plan(runner.kernel, parameters, None)
    assert runner.result(plan) == "100 of 100"
    with pytest.raises(NotSupported, match="counting changes nothing"):
        paint.plan(runner.kernel, paint.parameters(units=100, undo=True), None)


def test_helper_files_and_the_base_are_passed_over(package: Package) -> None:
    package.add("colours/paint.py", "paint")
    package.add("colours/_brush.py", "brush")
    package.add("base/nodes.py", "base")
    package.add("alone.py", "alone")
    assert list(find_operations(package.load())) == ["paint"]


def test_an_imported_operation_is_not_a_second_one(package: Package) -> None:
    package.add("colours/paint.py", "paint")
    package.add("colours/paint_all.py", "paint_all")
    with (package.root / "colours/paint_all.py").open("a") as file:
        file.write("\nfrom throwaway_operations.colours.paint import Paint0\n")
    assert list(find_operations(package.load())) == ["paint", "paint_all"]


def test_operations_of_one_name_that_nothing_tells_apart_are_refused(package: Package) -> None:
    package.add("colours/paint.py", "paint")
    package.add("shapes/draw.py", "paint")
    with pytest.raises(TypeError, match=r"colours\.paint and .*shapes\.draw are all named paint"):
        find_operations(package.load())


@pytest.mark.parametrize("names", [(), ("one", "two")], ids=["none", "two"])
def test_a_file_has_exactly_one_operation(package: Package, names: tuple[str, ...]) -> None:
    package.add("colours/paint.py", *names)
    with pytest.raises(TypeError, match=rf"colours\.paint has {len(names)} operations, not one"):
        find_operations(package.load())
