from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.ansible.tools import copy_collection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that has ansible_collections/, with the collection in it."""
    directory = tmp_path_factory.mktemp("collections")
    copy_collection(directory)
    return directory


class Utilities:
    """What the modules have in common, imported without Ansible."""

    def __init__(self) -> None:
        place = "ansible_collections.ktaskfs.host.plugins.module_utils"
        self.mounted: Any = importlib.import_module(f"{place}.mounted")
        self.values: Any = importlib.import_module(f"{place}.values")
        self.request: Any = importlib.import_module(f"{place}.request")
        self.targets: Any = importlib.import_module(f"{place}.targets")


@pytest.fixture(scope="session")
def utilities(collections: Path) -> Iterator[Utilities]:
    """The code of the collection below its modules."""
    sys.path.insert(0, str(collections))
    try:
        yield Utilities()
    finally:
        sys.path.remove(str(collections))
