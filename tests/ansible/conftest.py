from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.ansible.tools import NEWEST, OLDEST, copy_collection, environment
from tests.support.packages import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory above ansible_collections/, which has the collection."""
    directory = tmp_path_factory.mktemp("collections")
    copy_collection(directory)
    return directory


class Utilities:
    """The common code of the modules, imported without Ansible."""

    def __init__(self) -> None:
        place = "ansible_collections.ktaskfs.host.plugins.module_utils"
        self.mounted: Any = importlib.import_module(f"{place}.mounted")
        self.values: Any = importlib.import_module(f"{place}.values")
        self.request: Any = importlib.import_module(f"{place}.request")
        self.targets: Any = importlib.import_module(f"{place}.targets")


@pytest.fixture(scope="session")
def utilities(collections: Path) -> Iterator[Utilities]:
    """The common code of the modules."""
    sys.path.insert(0, str(collections))
    try:
        yield Utilities()
    finally:
        sys.path.remove(str(collections))


@pytest.fixture(scope="session")
def newest(root: None) -> Path:
    """The programs of the newest Ansible; skips where it cannot be installed."""
    return programs(NEWEST)


@pytest.fixture(scope="session")
def oldest(root: None) -> Path:
    """The programs of the oldest Ansible; skips where it cannot be installed."""
    return programs(OLDEST)


def programs(release: str) -> Path:
    """Returns the programs of a release; skips where it cannot be installed."""
    try:
        return environment(release)
    except Unavailable as error:
        pytest.skip(str(error))
