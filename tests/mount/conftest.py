"""Fixtures and helpers for tests of the mounted files, beside a mount."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import filesystems

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def memory(root: None, area: Path) -> Iterator[Path]:
    """A tmpfs open to every user, for tests to which the kind of memory makes no difference."""
    with filesystems.tmpfs(area / "memory", 256 << 20) as path:
        yield path
