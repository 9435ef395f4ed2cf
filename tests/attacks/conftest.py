"""What attacks need beside a mount."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support import filesystems

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def memory(area: Path) -> Iterator[Path]:
    """A tmpfs open to every user."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount tmpfs")
    with filesystems.tmpfs(area / "memory", 256 << 20) as path:
        yield path
