"""A daemon adopts the tasks of one that died."""

from __future__ import annotations

import errno
import json
import logging
import os
import queue
import select
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host import credentials
from ktaskfs.progress import write_requests
from ktaskfs.tasks import new_worker as new_worker_module
from ktaskfs.tasks import starter as starter_module
from ktaskfs.tasks.history import ALL_CAPABILITIES
from ktaskfs.tasks.record import VERSION
from ktaskfs.tasks.task import State
from tests.support.processes import has_ended
from tests.support.tasks import change_texts
from tests.tasks.house import (
    adopted,
    change_record,
    ended,
    leave_paused,
    me,
    open_files,
    open_house,
    read_json,
    stop_spare,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20

pytestmark = pytest.mark.usefixtures("workers")


async def test_a_worker_that_lives_goes_on(statedir: Path, memory: Path) -> None:
    before = open_files()
    pid = await leave_paused(statedir, memory)
    async with open_house(statedir) as house:
        task = await adopted(house, "t")
        assert task.worker is not None
        assert (task.state, task.worker.pid) == (State.PAUSED, pid)
        assert (task.done(task.snapshot()), task.total(task.snapshot())) == (4096, SIZE)
        change_texts(task, rate_max=None)
        house.service.set_live(task)
        await house.service.resume(task, me())
        assert await ended(task) is State.DONE
        assert (task.done(task.snapshot()), house.files()) == (SIZE, ["00000001.json"])
        assert (await house.run_one(f"fallocate path={memory}/file length=64K")).name == "fallocate-2"
    assert open_files() == before


async def test_a_task_of_a_daemon_that_wrote_version_1_goes_on(statedir: Path, memory: Path) -> None:
    pid = await leave_paused(statedir, memory)
    path = statedir / "00000001.json"
    fields = read_json(str(path)) | {"version": 1}
    fields["basis"] = fields.pop("baseline")
    del fields["boot"]
    path.write_text(json.dumps(fields))
    async with open_house(statedir) as house:
        task = await adopted(house, "t")
        assert task.worker is not None
        assert (task.state, task.worker.pid) == (State.PAUSED, pid)
        house.service.kill(task)
        assert await ended(task) is State.INTERRUPTED
        change_texts(task, rate_max=None)
        await house.service.resume(task, me())
        assert await ended(task) is State.DONE
        assert (task.history.base, task.snapshot().done) == (4096, SIZE - 4096), "a worker that lives proves the boot"
        assert house.record(task)["version"] == VERSION
        assert house.record(task)["baseline"]["total"] == SIZE


async def test_a_worker_that_dies_after_that_is_interrupted_without_a_status(statedir: Path, memory: Path) -> None:
    await leave_paused(statedir, memory)
    async with open_house(statedir) as house:
        task = await adopted(house, "t")
        house.service.kill(task)
        assert await ended(task) is State.INTERRUPTED
        assert task.snapshot().message == "the worker died"
        assert task.done(task.snapshot()) == 4096


async def test_a_pause_that_the_dead_daemon_had_asked_for_is_known(statedir: Path, memory: Path) -> None:
    await leave_paused(statedir, memory)
    change_record(statedir, 1, state="running")
    async with open_house(statedir) as house:
        assert (await adopted(house, "t")).state is State.PAUSED


async def test_a_cancel_that_the_dead_daemon_wrote_and_did_not_say_is_said(statedir: Path, memory: Path) -> None:
    async with open_house(statedir) as house:
        task = await house.run_one(f"fallocate path={memory}/file length={SIZE} chunk=4096 rate_max=1 name=t")
        await until(lambda: task.snapshot().done == 4096, "the first chunk")
        assert task.worker is not None
        write_requests(task.worker.page, task.requests._replace(cancel=True))
    async with open_house(statedir) as house:
        assert await ended(await adopted(house, "t")) is State.CANCELLED


async def test_a_worker_that_finished_meanwhile_is_done(statedir: Path, memory: Path) -> None:
    async with open_house(statedir) as house:
        task = await house.paused(memory / "file", more="name=t")
        assert task.worker is not None
        pidfd = os.dup(task.worker.pidfd)
        task.ask(task.requests._replace(paused=False, rate=0))
        # The daemon dies here, before it can hear of the end.
    await until(lambda: _dead(pidfd), "the worker ends")
    os.close(pidfd)
    async with open_house(statedir) as house:
        task = await adopted(house, "t")
        assert await ended(task) is State.DONE
        assert (task.done(task.snapshot()), task.worker) == (SIZE, None)
        assert house.files() == ["00000001.json"]
        assert house.record(task)["state"] == "done"


def _dead(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


async def test_a_worker_that_died_meanwhile_is_interrupted_where_it_was(statedir: Path, memory: Path) -> None:
    pid = await leave_paused(statedir, memory)
    os.kill(pid, signal.SIGKILL)
    async with open_house(statedir) as house:
        await until(lambda: not os.path.exists(f"/proc/{pid}/fd/0"), "the worker is dead")
        task = await adopted(house, "t")
        assert await ended(task) is State.INTERRUPTED
        snapshot = task.snapshot()
        assert (snapshot.errno, snapshot.error_position) == (errno.EINTR, 4096)
        assert snapshot.ended_ns > snapshot.started_ns, "or its time would go on, and its speed down"
        change_texts(task, rate_max=None)
        await house.service.resume(task, me())
        assert await ended(task) is State.DONE
        assert (task.done(task.snapshot()), task.total(task.snapshot())) == (SIZE, SIZE)


@pytest.mark.parametrize("change", [{"start_time": 1}, {"start_time": None}, {"pid": os.getpid()}, {"pid": 2**22 + 5}])
async def test_a_pid_that_is_anothers_now_is_left_alone(
    statedir: Path, memory: Path, change: dict[str, object]
) -> None:
    await leave_paused(statedir, memory)
    change_record(statedir, 1, **change)
    before = open_files()
    async with open_house(statedir) as house:
        task = await adopted(house, "t")
        assert (task.state, task.worker) == (State.INTERRUPTED, None)
        assert task.done(task.snapshot()) == 4096
    assert open_files() == before


@pytest.mark.parametrize("state", ["starting", "running", "queued"])
async def test_a_task_that_was_to_replace_another_is_removed(statedir: Path, memory: Path, state: str) -> None:
    """The daemon died before it removed the old record; no work had begun."""
    async with open_house(statedir) as house:
        await ended(await house.run_one(f"fallocate path={memory}/file length=64K name=t"))
        fields = house.record(house.table.require("t"))
    new = fields | {"task": 2, "state": state, "final": None}
    (statedir / "00000002.json").write_text(json.dumps(new))
    (statedir / "00000002.page").touch()
    async with open_house(statedir) as house:
        task = await adopted(house, "t")
        assert (list(house.table), task.number, task.state) == ([task], 1, State.DONE)
        assert house.files() == ["00000001.json"]


async def test_a_pid_that_is_a_threads_now_is_left_alone(statedir: Path, memory: Path) -> None:
    """pidfd_open(2) of a thread fails, with another errno than for an unused number."""
    await leave_paused(statedir, memory)
    over, tids = threading.Event(), queue.Queue[int]()

    def other() -> None:
        tids.put(threading.get_native_id())
        over.wait()

    thread = threading.Thread(target=other)
    thread.start()
    try:
        tid = tids.get()
        change_record(statedir, 1, pid=tid, start_time=credentials.start_time(tid))
        async with open_house(statedir) as house:
            assert (await adopted(house, "t")).state is State.INTERRUPTED
    finally:
        over.set()
        thread.join()


async def test_a_task_whose_page_is_gone_is_interrupted(statedir: Path, memory: Path) -> None:
    await leave_paused(statedir, memory)
    os.unlink(statedir / "00000001.page")
    async with open_house(statedir) as house:
        task = await adopted(house, "t")
        assert task.state is State.INTERRUPTED
        assert "cannot read the worker's page: No such file" in task.snapshot().message


@pytest.mark.parametrize("garbage", [b"", b"\xff" * 100_000, b"x"])
async def test_a_page_full_of_garbage_costs_its_task_only(statedir: Path, memory: Path, garbage: bytes) -> None:
    pid = await leave_paused(statedir, memory)
    os.kill(pid, signal.SIGKILL)
    async with open_house(statedir) as house:
        (statedir / "00000001.page").write_bytes(garbage)
        await until(lambda: not os.path.exists(f"/proc/{pid}/fd/0"), "the worker is dead")
        task = await adopted(house, "t")
        await ended(task)
        assert 0 <= task.done(task.snapshot()) <= task.total(task.snapshot())


async def test_a_start_that_was_answered_late_is_interrupted_and_can_be_resumed(
    statedir: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter_module, "PATIENCE", 0.0)
    async with open_house(statedir) as house:
        spawner = house.spawner()
        spawner.suspend()
        await house.run(f"fallocate path={memory}/file length=64K name=t")
        await until(lambda: house.files() == ["00000001.json", "00000001.page"], "record and page")
        spawner.resume()
    await until(lambda: os.listdir(memory) == [], "what was prepared is taken back")
    async with open_house(statedir) as house:
        task = await adopted(house, "t")
        assert await ended(task) is State.INTERRUPTED
        assert task.snapshot().message == "the daemon ended before the work began"
        await house.service.resume(task, me())
        assert await ended(task) is State.DONE
        assert task.done(task.snapshot()) == 64 << 10


async def test_a_worker_that_hangs_in_its_start_does_not_outlive_its_daemon_for_long(
    statedir: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter_module, "PATIENCE", 0.0)
    async with open_house(statedir) as house:
        worker = await stop_spare(house)
        await house.run(f"fallocate path={memory}/file length=64K name=t")
        await until(lambda: house.table.require("t").worker is not None, "the worker is known")
    monkeypatch.setattr(new_worker_module, "TIMEOUT", 0.2)
    async with open_house(statedir) as house:
        assert await ended(await adopted(house, "t")) is State.INTERRUPTED
        assert has_ended(worker)
    assert os.listdir(memory) == []


async def test_a_worker_that_hangs_in_its_start_can_be_killed_by_the_next_daemon(
    statedir: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter_module, "PATIENCE", 0.0)
    before = open_files()
    async with open_house(statedir) as house:
        worker = await stop_spare(house)
        await house.run(f"fallocate path={memory}/file length=64K name=t")
        await until(lambda: house.table.require("t").worker is not None, "the worker is known")
    async with open_house(statedir) as house:
        task = await adopted(house, "t")
        assert (task.state, task.worker is not None and task.worker.pid) == (State.STARTING, worker.pid)
        assert task.snapshot().done == 0
        house.service.kill(task)
        assert await ended(task) is State.INTERRUPTED
        assert has_ended(worker)
    assert open_files() == before


async def test_tasks_that_are_new_or_ended_are_remembered(statedir: Path, memory: Path) -> None:
    async with open_house(statedir) as house:
        new = house.service.create_empty("new", 7, 8, ALL_CAPABILITIES)
        change_texts(new, length="4096")
        house.service.save(new)
        done = await house.run_one(f"fallocate path={memory}/file length=64K name=done")
        await ended(done)
        snapshot = done.snapshot()
    async with open_house(statedir) as house:
        await house.service.adopt()
        first, second = house.table
        assert (first.name, first.uid, first.gid, first.state, first.texts) == ("new", 7, 8, State.NEW, new.texts)
        assert (second.state, second.snapshot(), second.texts) == (State.DONE, snapshot, done.texts)


@pytest.mark.parametrize(
    "change",
    [
        {"operation": "gone"},
        {"name": "control"},
        {"name": "a/b"},
        {"name": "other"},
        {"state": "odd"},
        {"parameters": {"nice": "many"}},
        {"parameters": None},
        {"version": VERSION + 1},
    ],
)
async def test_a_record_that_makes_no_sense_is_set_aside_beside_sound_ones(
    statedir: Path, change: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    async with open_house(statedir) as house:
        for name in ("other", "t", "third"):
            house.service.create_empty(name, 1, 1, ALL_CAPABILITIES)
    change_record(statedir, 2, **change)
    async with open_house(statedir) as house:
        with caplog.at_level(logging.WARNING):
            await house.service.adopt()
        assert [task.name for task in house.table] == ["other", "third"]
        assert house.files() == ["00000001.json", "00000002.json.bad", "00000003.json"]
        assert "setting aside" in caplog.text
        assert house.service.create_empty("t", 1, 1, ALL_CAPABILITIES).number == 4


async def test_a_lower_limit_of_finished_tasks_holds_for_those_taken_over(statedir: Path, memory: Path) -> None:
    async with open_house(statedir) as house:
        for name in "abc":
            await ended(await house.run_one(f"fallocate path={memory}/file length=64K name={name}"))
    async with open_house(statedir, keep_finished=1) as house:
        await house.service.adopt()
        assert [task.name for task in house.table] == ["c"]
        assert house.files() == ["00000003.json"]
