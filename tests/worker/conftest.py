"""Fixtures for real spawners and targets in memory."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.worker.spawned import Spawner

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def memory() -> Iterator[Path]:
    """An empty directory on a tmpfs."""
    path = Path(tempfile.mkdtemp(prefix="kt-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def spawner(tmp_path: Path) -> Iterator[Spawner]:
    """A running spawner, whose log must be clean of tracebacks unless the test reads and empties it."""
    spawner = Spawner(tmp_path)
    yield spawner
    spawner.close()
    assert "Traceback" not in spawner.log.read_text(), spawner.log.read_text()
