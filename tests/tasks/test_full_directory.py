"""A state directory in which no record can be written: what was recorded before stays true, or goes."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from ktaskfs.errors import TargetError
from ktaskfs.tasks.history import ALL_CAPABILITIES
from ktaskfs.tasks.starter import Starter
from ktaskfs.tasks.task import State
from tests.tasks.house import House, busy, ended, line, me, open_files, open_house, stop_spare, until

if TYPE_CHECKING:
    from pathlib import Path


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("queued", [False, True])
async def test_a_task_that_was_to_be_replaced_stays(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch, *, queued: bool
) -> None:
    old = await house.run_one(line(memory / "t", ""))
    assert await ended(old) is State.DONE
    if queued:
        await busy(house, memory)
    before, tasks = open_files(), list(house.table)
    with monkeypatch.context() as patch:
        patch.setattr(house.state, "write", no_room)
        with pytest.raises(TargetError, match="No space left on device") as refused:
            await house.run(line(memory / "t", "queue=1 replace=1"))
    assert "record" in refused.value.message
    assert (house.table.require("t"), old.forgotten, set(house.table)) == (old, False, set(tasks))
    assert house.record(old)["state"] == "done"
    await until(lambda: open_files() == before, "all descriptors are closed")


@pytest.mark.usefixtures("hasty")
async def test_a_write_whose_task_cannot_be_recorded_does_not_succeed_before_the_start(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await house.run_one(line(memory / "t", ""))
    assert await ended(old) is State.DONE
    before = open_files()
    worker = await stop_spare(house)
    answer_early = Starter._answer_early

    async def with_page(starter: Starter, batch: Any) -> None:
        await until(lambda: len(house.files()) > 1, "the start has a page")
        await answer_early(starter, batch)
        worker.resume()  # the refusal waits for what it undoes

    with monkeypatch.context() as patch:
        patch.setattr(Starter, "_answer_early", with_page)
        patch.setattr(house.state, "write", no_room)
        with pytest.raises(TargetError, match="write the task's record") as refused:
            await house.run(line(memory / "t", "replace=1"))
    assert refused.value.errno == errno.ENOSPC
    assert (list(house.table), old.forgotten) == ([old], False)
    await until(lambda: house.files() == ["00000001.json"], "its worker has ended")
    await until(lambda: open_files() == before, "all descriptors are closed")


@pytest.mark.parametrize("begins", [False, True])
async def test_a_queued_task_that_ended_is_not_queued_again_by_the_next_daemon(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, begins: bool
) -> None:
    first = await busy(house, memory)
    waiting = await house.run_one(line(memory / "a"))
    assert house.record(waiting)["state"] == "queued"
    with monkeypatch.context() as patch:
        patch.setattr(house.state, "write", no_room)
        if begins:
            house.set("max_tasks", 2)
            assert await ended(waiting) is State.FAILED
            assert "write the task's record" in waiting.snapshot().message
        else:
            house.service.cancel(waiting)
            assert waiting.state is State.CANCELLED
    assert [name for name in house.files() if name.startswith(f"{waiting.number:08d}")] == []
    assert "write the record of task a: No space left on device" in caplog.text
    house.service.kill(first)
    assert await ended(first) is State.INTERRUPTED


async def test_a_resume_does_not_remove_the_only_account_of_what_is_done(
    workers: None, tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(tmp_path / "state") as house:
        task = await house.paused(memory / "file", more="name=t")
        monkeypatch.setattr(house.state, "write", no_room)
        house.service.kill(task)
        assert await ended(task) is State.INTERRUPTED
        with pytest.raises(TargetError, match="write the record of task t: No space left on device"):
            await house.service.resume(task, me())
        assert (task.state, task.done(task.snapshot())) == (State.INTERRUPTED, 4096)
    async with open_house(tmp_path / "state") as house:
        await house.service.adopt()
        task = house.table.require("t")
        assert (task.state, task.done(task.snapshot())) == (State.INTERRUPTED, 4096)


async def test_no_task_is_made_without_a_record(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(house.state, "write", no_room)
        with pytest.raises(TargetError, match="write the record of task mine: No space left on device"):
            house.service.create_empty("mine", 1, 1, ALL_CAPABILITIES)
    assert list(house.table) == []
    house.service.create_empty("mine", 1, 1, ALL_CAPABILITIES)
