"""Starts that take longer than a write may: they are answered, and go on."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
import trio

from ktaskfs.errors import TargetError, WrongState
from ktaskfs.progress import Requests, read_requests
from ktaskfs.tasks.task import State
from ktaskfs.worker import protocol
from tests.support.tasks import change_texts
from tests.tasks.house import House, adopted, ended, me, open_files, open_house, until

if TYPE_CHECKING:
    from pathlib import Path

    from ktaskfs.tasks.task import Task


async def begin_late(house: House, line: str) -> Task:
    """A task that is still starting, with its spawner stopped."""
    house.spawner().suspend()
    task = await house.run_one(line)
    assert task.state is State.STARTING
    return task


@pytest.mark.usefixtures("hasty")
async def test_a_start_that_takes_long_goes_on_after_the_answer(house: House, memory: Path) -> None:
    task = await begin_late(house, f"fallocate path={memory}/file length=64K")
    with pytest.raises(WrongState):
        house.service.forget(task)
    with pytest.raises(WrongState):
        house.service.pause(task)
    with pytest.raises(WrongState):
        await house.service.resume(task, me())
    house.spawner().resume()
    assert await ended(task) is State.DONE


@pytest.mark.usefixtures("hasty")
async def test_a_late_refusal_is_the_tasks_error(house: House) -> None:
    before = open_files()
    task = await begin_late(house, "clear path=/dev/shm/no-such-file")
    house.spawner().resume()
    assert await ended(task) is State.FAILED
    assert (task.snapshot().errno, task.worker) == (errno.ENOENT, None)
    assert "no-such-file" in task.snapshot().message
    assert house.files() == ["00000001.json"]
    await until(lambda: open_files() == before, "all descriptors are closed")


@pytest.mark.usefixtures("hasty")
async def test_after_the_answer_each_task_names_the_spec_that_failed(house: House, memory: Path) -> None:
    house.spawner().suspend()
    first, bad, last = await house.run(
        f"fallocate path={memory}/a length=64K",
        f"clear path={memory}/none name=bad",
        f"fallocate path={memory}/b length=64K",
    )
    house.spawner().resume()
    assert [await ended(task) for task in (first, bad, last)] == [State.FAILED] * 3
    reason = f"open {memory}/none: No such file or directory"
    assert (bad.snapshot().errno, bad.snapshot().message) == (errno.ENOENT, reason)
    for task in (first, last):
        assert task.snapshot().errno == errno.ECANCELED
        assert task.snapshot().message == f"task bad of the same write could not start: {reason}"
    assert os.listdir(memory) == []
    (memory / "none").touch()
    await house.service.resume(first, me())
    assert await ended(first) is State.DONE


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("verb", ["cancel", "kill"])
async def test_a_late_start_can_be_cancelled_and_killed(house: House, memory: Path, verb: str) -> None:
    task = await begin_late(house, f"fallocate path={memory}/file length=64K")
    getattr(house.service, verb)(task)
    getattr(house.service, verb)(task)
    assert await ended(task) is State.CANCELLED
    assert task.snapshot().errno == errno.ECANCELED
    house.spawner().resume()
    await house.service.resume(task, me())
    assert await ended(task) is State.DONE
    assert (task.done(task.snapshot()), task.total(task.snapshot())) == (64 << 10, 64 << 10)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("dies", [False, True])
async def test_a_start_that_never_looked_at_its_process_is_not_resumed(statedir: Path, *, dies: bool) -> None:
    """Another process may have the number by now."""
    async with open_house(statedir) as house:
        task = await begin_late(house, f"survey pid={os.getpid()} name=t")
        if not dies:
            house.service.cancel(task)
            assert await ended(task) is State.CANCELLED
    async with open_house(statedir) as house:
        task = await adopted(house, "t")
        state = await ended(task)
        assert state is (State.INTERRUPTED if dies else State.CANCELLED)
        with pytest.raises(TargetError, match=f"which process was {os.getpid()} at the start") as refused:
            await house.service.resume(task, me())
        assert (refused.value.errno, task.state) == (errno.ESTALE, state)


@pytest.mark.usefixtures("hasty")
async def test_wishes_that_change_while_a_task_starts_are_in_force_when_it_begins(house: House, memory: Path) -> None:
    task = await begin_late(house, f"fallocate path={memory}/file length=1M chunk=4096 rate_max=1 max_threads=2")
    house.set("nice", 7)
    change_texts(task, rate_max="2", max_threads="1")
    house.service.set_live(task)
    house.spawner().resume()
    await until(lambda: task.state is State.RUNNING, "the task runs")
    assert task.worker is not None
    assert read_requests(task.worker.page) == Requests(threads=1, rate=2, nice=7)


async def test_a_task_that_is_dropped_before_others_of_its_write_begin_leaves_no_record(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write is answered between the first GO and the second, because it has waited long enough."""
    with trio.socket.socket() as sock:
        kind = type(sock)
    send, starter, gos = kind.send, house.service._starter, 0

    async def send_later(sock: trio.socket.SocketType, data: bytes) -> int:
        nonlocal gos
        gos += data == protocol.GO
        if gos == 2:
            await until(lambda: "first" not in {task.name for task in house.table}, "the first task is dropped")
            await starter._answer_early(starter._batches[house.table.require("second")])
        return await send(sock, data)

    house.set("keep_finished", 0)
    monkeypatch.setattr(kind, "send", send_later)
    await house.run(*(f"fallocate path={memory}/{name} length=64K name={name}" for name in ("first", "second")))
    assert gos == 2
    await until(lambda: house.files() == [], "all tasks are dropped, with their records")
