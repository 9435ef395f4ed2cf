from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fleet.hosts import Host, Place, three_hosts

if TYPE_CHECKING:
    from collections.abc import Iterator

Fleet = tuple[Place, list[Host]]


@pytest.fixture(scope="package")
def fleet(root: None) -> Iterator[Fleet]:
    """Three hosts. The second one has little memory."""
    with tempfile.TemporaryDirectory(prefix="kt-fleet-") as path, three_hosts(Path(path)) as made:
        yield made


@pytest.fixture
def place(fleet: Fleet) -> Place:
    """The network from which commands reach the hosts."""
    return fleet[0]


@pytest.fixture
def hosts(fleet: Fleet) -> Iterator[list[Host]]:
    """hv1, hv2 (with room for 4 MiB) and hv3, all without tasks."""
    yield fleet[1]
    for host in fleet[1]:
        if host.is_alive:
            host.clear()
