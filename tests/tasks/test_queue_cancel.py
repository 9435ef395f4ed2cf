"""A cancel of tasks that wait, while their write is under way, and of all tasks of a user."""

from __future__ import annotations

import errno
import gc
import os
import select
import weakref
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio

from ktaskfs.errors import KtaskfsError, TargetError
from ktaskfs.tasks.task import State
from tests.support.poll import DEADLINE
from tests.tasks.house import House, busy, ended, line, me, open_files, stop_spare, until

if TYPE_CHECKING:
    from pathlib import Path

    from ktaskfs.tasks.task import Task

pytestmark = pytest.mark.usefixtures("workers")


@pytest.mark.parametrize("verb", ["cancel", "kill"])
async def test_one_whose_write_is_under_way_ends_with_the_answer(house: House, memory: Path, verb: str) -> None:
    await busy(house, memory, 2)
    worker = await stop_spare(house)
    before = open_files()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.run, line(memory / "a"), line(memory / "b"), line(memory / "c"))
        await until(lambda: len(house.table) == 4, "the write is under way")
        _, first, waiting, other = house.table
        await until(lambda: first.worker is not None, "the first one has a worker")
        for _ in range(2):
            getattr(house.service, verb)(waiting)
        assert (waiting.state, house.files()[-1].startswith(f"{first.number:08d}")) == (State.QUEUED, True)
        worker.resume()
    assert (waiting.state, waiting.snapshot().errno) == (State.CANCELLED, errno.ECANCELED)
    assert house.record(waiting)["state"] == "cancelled"
    assert await ended(first) is await ended(other) is State.DONE
    assert not (memory / "b").exists()
    await house.service.resume(waiting, me())
    assert await ended(waiting) is State.DONE
    await until(lambda: open_files() <= before, "all descriptors are closed")


async def test_all_are_cancelled_and_a_write_under_way_is_given_up(house: House, memory: Path) -> None:
    first = await busy(house, memory, 2)
    worker = await stop_spare(house)

    async def given_up() -> None:
        with pytest.raises(KtaskfsError) as refusal:
            await house.run(line(memory / "a"), line(memory / "b"))
        assert refusal.value.errno == errno.ECANCELED

    async with trio.open_nursery() as nursery:
        nursery.start_soon(given_up)
        await until(lambda: len(house.table) == 3, "the write is under way")
        later = await house.run_one(line(memory / "later"))
        await house.service.cancel_all(os.geteuid())
        assert later.state is State.CANCELLED
        worker.resume()
    assert await ended(first) is State.CANCELLED
    assert [task.name for task in house.table] == ["busy", "later"]


async def test_all_are_cancelled_between_the_begin_and_the_answer(house: House, memory: Path) -> None:
    await busy(house, memory, 2)

    def cancel_all(task: Task) -> None:
        if task.name == "a" and task.state is State.RUNNING:
            house.table.observers.remove(cancel_all)
            house.nursery.start_soon(house.service.cancel_all, task.uid)

    house.table.observers.append(cancel_all)
    tasks = await house.run(f"fallocate path={memory}/a length=1M chunk=4096 rate_max=1 name=a", line(memory / "b"))
    assert [await ended(task) for task in house.table] == [State.CANCELLED] * 3
    assert house.record(tasks[1])["state"] == "cancelled"


async def test_one_that_cannot_be_told_does_not_keep_the_others_from_their_end(house: House, memory: Path) -> None:
    house.set("max_tasks", 2)
    deaf, other = [await house.paused(memory / name, more=f"name={name}") for name in ("deaf", "other")]
    worker = deaf.worker
    assert worker is not None
    nothing = os.open(os.devnull, os.O_RDONLY)
    deaf.worker = worker._replace(page=nothing)
    with pytest.raises(TargetError, match="tell the worker of task deaf"):
        await house.service.cancel_all(os.geteuid())
    deaf.worker = worker
    os.close(nothing)
    assert await ended(other) is State.CANCELLED
    assert deaf.state is State.PAUSED
    house.service.cancel(deaf)
    assert await ended(deaf) is State.CANCELLED


async def test_a_cancelled_task_behind_another_is_not_kept(house: House, memory: Path) -> None:
    await busy(house, memory)
    await house.run(line(memory / "first"))
    kept = []
    for verb in ("cancel", "kill"):
        waiting = await house.run_one(line(memory / verb))
        getattr(house.service, verb)(waiting)
        house.service.forget(waiting)
        kept.append(weakref.ref(waiting))
        del waiting
    gc.collect()
    assert [each() for each in kept] == [None, None]


async def test_a_user_whose_queued_tasks_were_all_cancelled_has_no_queue(house: House, memory: Path) -> None:
    first = await busy(house, memory)
    for waiting in await house.run(line(memory / "a"), line(memory / "b")):
        house.service.cancel(waiting)
    house.set("max_tasks", 2)
    assert (await house.run_one(line(memory / "c"))).state is not State.QUEUED
    house.service.kill(first)


async def test_requests_come_in_between_the_ends_of_many_tasks(house: House, memory: Path) -> None:
    house.set("max_tasks", 4)
    tasks = [await house.paused(memory / name, more=f"name={name}") for name in "abcd"]
    turns, ends = 0, []

    def note(task: Task) -> None:
        ends.append(turns)

    house.table.observers.append(note)
    for task in tasks:
        house.service.kill(task)
    for task in tasks:
        assert task.worker is not None
        select.select([task.worker.pidfd], [], [], DEADLINE)
    while len(ends) < len(tasks):
        turns += 1
        await trio.lowlevel.checkpoint()
    assert max(Counter(ends).values()) <= 2  # in any order within a turn of the event loop
