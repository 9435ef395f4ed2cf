"""Fixtures for tests with state directories and real workers."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from ktaskfs.tasks import adoption, named_processes, new_worker, starter, table
from ktaskfs.tasks.private_directory import PrivateDirectory
from ktaskfs.tasks.state_directory import StateDirectory
from tests.support.leftovers import none_left
from tests.support.poll import DEADLINE
from tests.tasks.house import CPUS, House, open_house

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture
def memory() -> Iterator[Path]:
    """An empty directory on a tmpfs."""
    path = Path(tempfile.mkdtemp(prefix="kt-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch, memory: Path) -> Iterator[None]:
    """Every worker is killed at the end, and no process may be left after that: then ``memory`` is removed.

    A write waits for its targets on any slow machine, and if it is refused for what the workers take back, unless a
    test sets another time.
    """
    monkeypatch.setattr(starter, "PATIENCE", DEADLINE)
    monkeypatch.setattr(starter, "GRACE", DEADLINE)
    monkeypatch.setattr(named_processes, "PATIENCE", DEADLINE)
    monkeypatch.setattr(adoption, "PATIENCE", DEADLINE)
    with none_left():
        yield
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if child.name().startswith("ktask/"):
                    child.kill()


@pytest.fixture
def known_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon shares out the helpers of CPUS, however many CPUs this machine has."""
    for module in (table, new_worker):
        monkeypatch.setattr(module, "usable_cpus", lambda pid=0: CPUS)


@pytest.fixture
async def house(workers: None, tmp_path: Path) -> AsyncIterator[House]:
    """A daemon without a mount."""
    async with open_house(tmp_path / "state") as house:
        yield house


@pytest.fixture
def statedir(tmp_path: Path) -> Path:
    """The directory that one daemon leaves to the next."""
    return tmp_path / "state"


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    """An empty state directory, locked."""
    directory = StateDirectory(PrivateDirectory(str(tmp_path / "state")))
    yield directory
    directory.close()


@pytest.fixture
def hasty(workers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes are answered at once, whether their tasks have begun or not.

    It asks for no async fixture: pytest-trio would then run it for tests that name it as an argument only.
    """
    monkeypatch.setattr(starter, "PATIENCE", 0.0)
