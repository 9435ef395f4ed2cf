"""Workers that /proc hides from an ordinary user's daemon, because they are not dumpable: proc(5), hidepid."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil
import pytest

from ktaskfs.host import credentials
from ktaskfs.tasks.task import State
from tests.support.processes import has_ended
from tests.tasks.house import ended, open_files, open_house

if TYPE_CHECKING:
    from pathlib import Path

START_TIME = credentials.start_time

pytestmark = pytest.mark.usefixtures("workers", "hidepid")


@pytest.fixture(params=["1", "2"])
def hidepid(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No start time can be read."""

    def start_time(pid: int) -> int | None:
        if request.param == "1":
            raise PermissionError
        return None

    monkeypatch.setattr("ktaskfs.host.credentials.start_time", start_time)


async def test_the_next_daemon_knows_a_worker_by_its_page(tmp_path: Path, memory: Path) -> None:
    before = open_files()
    async with open_house(tmp_path / "state") as house:
        tasks = [await house.paused(memory / name, more=f"name={name}") for name in "ab"]
        pids = [task.worker.pid for task in tasks if task.worker is not None]
    psutil.Process(pids[0]).kill()
    psutil.wait_procs([psutil.Process(pids[0])])
    async with open_house(tmp_path / "state") as house:
        await house.service.adopt()
        first, second = house.table
        assert (first.state, first.done(first.snapshot()), first.worker) == (State.INTERRUPTED, 4096, None)
        assert second.worker is not None
        assert (second.state, second.worker.pid) == (State.PAUSED, pids[1])
        worker = psutil.Process(pids[1])
        house.service.kill(second)
        assert await ended(second) is State.INTERRUPTED
        assert has_ended(worker)
    assert open_files() == before


async def test_another_process_with_its_number_is_left_alone(tmp_path: Path, memory: Path) -> None:
    async with open_house(tmp_path / "state") as house:
        task = await house.paused(memory / "file")
        record = tmp_path / "state/00000001.json"
        assert task.worker is not None
        record.write_text(record.read_text().replace(f'"pid": {task.worker.pid}', f'"pid": {os.getpid()}'))
    async with open_house(tmp_path / "state") as house:
        await house.service.adopt()
        (task,) = house.table
        assert (task.state, task.worker) == (State.INTERRUPTED, None)


async def test_a_worker_that_is_no_longer_hidden_is_known(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record has no start time."""
    async with open_house(tmp_path / "state") as house:
        await house.paused(memory / "file")
    monkeypatch.setattr(credentials, "start_time", START_TIME)
    async with open_house(tmp_path / "state") as house:
        await house.service.adopt()
        (task,) = house.table
        assert (task.state, task.worker is not None) == (State.PAUSED, True)
        house.service.kill(task)
        assert await ended(task) is State.INTERRUPTED
