"""Finds the operations: every module of this package that defines a subclass of Operation."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import ktaskfs.operations
from ktaskfs.operations.operation import Operation

if TYPE_CHECKING:
    from collections.abc import Mapping


def find_operations() -> Mapping[str, Operation[Any]]:
    """All operations by name, in alphabetical order; importing them is the cost, so call it once a process."""
    found: dict[str, Operation[Any]] = {}
    for module_info in pkgutil.iter_modules(ktaskfs.operations.__path__):
        module = importlib.import_module(f"{ktaskfs.operations.__name__}.{module_info.name}")
        for _, each in inspect.getmembers(module, inspect.isclass):
            if issubclass(each, Operation) and not inspect.isabstract(each) and each.__module__ == module.__name__:
                found[each.name] = each()
    return MappingProxyType(dict(sorted(found.items())))
