"""Fixtures for tests of real programs: the newest ones, and files of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients.newest import Utilities
from tests.fuse.conftest import example
from tests.support.filesystems import tmpfs
from tests.support.packages import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


__all__ = ["example"]


@pytest.fixture(scope="session")
def newest(root: None) -> Utilities:
    try:
        return Utilities()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def memory(root: None, area: Path) -> Iterator[Path]:
    with tmpfs(area / "memory", 256 << 20) as path:
        yield path
