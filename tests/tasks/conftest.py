"""Fixtures for tests with real workers."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from ktaskfs.tasks import starter
from tests.support.leftovers import none_left
from tests.tasks.house import DEADLINE, House, open_house

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture
def memory() -> Iterator[Path]:
    """An empty directory on a tmpfs."""
    path = Path(tempfile.mkdtemp(prefix="kt-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every worker is killed at the end, and no process may be left after that.

    A write waits for its targets however slow the machine is, where a test does not say otherwise.
    """
    monkeypatch.setattr(starter, "PATIENCE", DEADLINE)
    with none_left():
        yield
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if child.name().startswith("ktask/"):
                    child.kill()


@pytest.fixture
async def house(workers: None, tmp_path: Path) -> AsyncIterator[House]:
    """A daemon without a mount."""
    async with open_house(tmp_path / "state") as house:
        yield house
