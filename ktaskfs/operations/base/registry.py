"""Finds the operations: each file of a family that does not begin with ``_`` is one.

A family is a package beside ``base``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import ktaskfs.operations
from ktaskfs.operations.base.operation import Operation, SpecWord
from ktaskfs.operations.base.shared_word import SharedWord

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

BASE: Final = "base"


def find_operations(package: ModuleType = ktaskfs.operations) -> Mapping[str, SpecWord]:
    """All operations of the families in ``package`` by name, in alphabetical order.

    Importing them is slow, so call it once in a process. Operations of one name become a SharedWord. Raises TypeError
    for a file without exactly one operation, and for operations of one name that a spec cannot distinguish.
    """
    found: dict[str, list[Operation[Any]]] = {}
    for module in _modules(package):
        operations = _operations_in(module)
        if len(operations) != 1:
            raise TypeError(f"{module.__name__} has {len(operations)} operations, not one")
        (found_class,) = operations
        operation = found_class()
        found.setdefault(operation.name, []).append(operation)
    words: dict[str, SpecWord] = {
        name: each[0] if len(each) == 1 else SharedWord(each) for name, each in sorted(found.items())
    }
    return MappingProxyType(words)


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for family in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if family.ispkg and family.name.rpartition(".")[2] != BASE:
            inside = importlib.import_module(family.name)
            for each in pkgutil.iter_modules(inside.__path__, f"{family.name}."):
                if not each.name.rpartition(".")[2].startswith("_"):
                    yield importlib.import_module(each.name)


def _operations_in(module: ModuleType) -> list[type[Operation[Any]]]:
    """The operations that a module defines, not those that it imports."""
    classes = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__]
    return [each for each in classes if issubclass(each, Operation) and not inspect.isabstract(each)]
