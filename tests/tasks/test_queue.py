"""queue=1: tasks that wait for their user's limit. replace=1: a name that is reused."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
import trio

from ktaskfs.errors import KtaskfsError, NameTaken, SpecError, TooBig, TooManyTasks, WrongState
from ktaskfs.tasks.history import ALL_CAPABILITIES
from ktaskfs.tasks.table import TaskTable
from ktaskfs.tasks.task import Origin, State, Task
from ktaskfs.tasks.tunables import Settings
from tests.support.tasks import change_texts
from tests.tasks.house import House, busy, ended, line, me, open_files, open_house, stop_spare, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("workers")


async def test_each_begins_in_its_turn_when_one_has_ended(house: House, memory: Path) -> None:
    before = open_files()
    first = await busy(house, memory, 2)
    tasks = await house.run(*(line(memory / name) for name in "abcd"))
    assert [task.name for task in tasks] == ["a", "b", "c", "d"]
    assert [task.state for task in tasks[1:]] == [State.QUEUED] * 3, "one place was free"
    order: list[str] = []
    house.table.observers.append(lambda task: order.append(task.name) if task.state is State.STARTING else None)
    assert [await ended(task) for task in tasks] == [State.DONE] * 4
    assert order == ["b", "c", "d"]
    house.service.kill(first)
    await ended(first)
    await until(lambda: open_files() == before, "all descriptors are closed")


async def test_who_comes_later_does_not_begin_earlier(house: House, memory: Path) -> None:
    first = await busy(house, memory)
    (waiting,) = await house.run(line(memory / "a"))
    house.service.kill(first)
    (later,) = await house.run(line(memory / "b"))
    assert later.state is State.QUEUED
    assert await ended(waiting) is await ended(later) is State.DONE
    assert waiting.snapshot().started_ns < later.snapshot().started_ns


async def test_without_the_word_a_full_house_is_full(house: House, memory: Path) -> None:
    await busy(house, memory)
    for lines in ([("a", "queue=1"), ("b", "")], [("a", "")]):
        with pytest.raises(TooManyTasks, match="you have 1 unfinished tasks; the limit is 1"):
            await house.run(*(line(memory / name, more) for name, more in lines))
    assert [task.name for task in house.table] == ["busy"]


async def test_the_queue_has_a_limit_of_its_own(house: House, memory: Path) -> None:
    await busy(house, memory)
    house.set("max_queued", 2)
    await house.run(line(memory / "a"))
    before = house.files(), open_files()
    with pytest.raises(TooManyTasks, match="you have 1 queued tasks; the limit is 2") as refusal:
        await house.run(line(memory / "b"), line(memory / "c"))
    assert refusal.value.errno == errno.EAGAIN
    assert ([task.name for task in house.table], (house.files(), open_files())) == (["busy", "a"], before)
    await house.run(line(memory / "b"))


async def test_more_specs_than_can_ever_be_are_too_many(house: House, memory: Path) -> None:
    house.set("max_tasks", 2)
    house.set("max_queued", 1)
    for count, more in ((3, " queue=1"), (2, "")):
        assert len(await house.service.specs.read(0, f"clear path=/x{more}\n" * count)) == count
        with pytest.raises(TooBig, match="more specs in one write than the 2 unfinished tasks"):
            await house.service.specs.read(0, f"clear path=/x{more}\n" * (count + 1))


@pytest.mark.parametrize("verb", ["cancel", "kill"])
async def test_a_queued_task_is_cancelled_and_can_be_resumed(house: House, memory: Path, verb: str) -> None:
    first = await busy(house, memory)
    one, other = await house.run(line(memory / "a"), line(memory / "b"))
    with pytest.raises(WrongState):
        house.service.forget(one)
    getattr(house.service, verb)(one)
    assert (one.state, one.snapshot().errno) == (State.CANCELLED, errno.ECANCELED)
    house.service.kill(first)
    assert await ended(other) is State.DONE
    assert not (memory / "a").exists()
    await house.service.resume(one, me())
    assert await ended(one) is State.DONE


async def test_one_that_cannot_start_fails_and_the_next_begins(house: House, memory: Path) -> None:
    first = await busy(house, memory)
    bad, good = await house.run(line(memory / "none" / "a"), line(memory / "b"))
    house.service.kill(first)
    assert (await ended(bad), await ended(good)) == (State.FAILED, State.DONE)
    assert (bad.snapshot().errno, bad.snapshot().message) == (
        errno.ENOENT,
        f"open {memory}/none/a: No such file or directory",
    )


async def test_of_a_write_that_is_refused_nothing_waits(house: House, memory: Path) -> None:
    house.set("max_tasks", 1)
    before = open_files()
    with pytest.raises(KtaskfsError, match="none/a"):
        await house.run(line(memory / "none" / "a", ""), line(memory / "b"))
    assert (len(house.table), house.files()) == (0, [])
    await until(lambda: open_files() == before, "all descriptors are closed")
    assert await ended(await house.run_one(line(memory / "c"))) is State.DONE


async def test_a_higher_limit_lets_them_begin(house: House, memory: Path) -> None:
    await busy(house, memory)
    tasks = await house.run(line(memory / "a"), line(memory / "b"))
    house.set("max_tasks", 3)
    assert [await ended(task) for task in tasks] == [State.DONE] * 2


async def test_who_is_above_a_limit_that_was_lowered_may_queue(house: House, memory: Path) -> None:
    await busy(house, memory, 2)
    await house.paused(memory / "other")
    house.set("max_tasks", 1)
    (waiting,) = await house.run(line(memory / "a"))
    assert waiting.state is State.QUEUED


def test_a_queue_that_others_have_filled_is_no_reason_to_refuse_what_does_not_wait() -> None:
    table = TaskTable(Settings({}), descriptors=512)
    for number in range(32):
        task = Task(Origin.now(number, f"t{number}", 0, 0))
        task.state = State.QUEUED
        table.add(task)
    with pytest.raises(TooManyTasks, match="all users together 32 of 32"):
        table.check_queue(1, 1)
    table.check_queue(1, 0)


async def test_others_are_served_while_many_begin(house: House, memory: Path) -> None:
    await busy(house, memory)
    tasks = await house.run(*(line(memory / name) for name in "abcdef"))
    begun: set[int] = set()

    async def serve() -> None:
        while True:
            begun.add(sum(task.state is not State.QUEUED for task in tasks))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        house.set("max_tasks", 1 + len(tasks))
        await until(lambda: len(tasks) in begun, "all have begun")
        nursery.cancel_scope.cancel()
    assert len(begun - {0, len(tasks)}) > 1, "a few at a time"


async def test_they_outlive_the_daemon(tmp_path: Path, memory: Path) -> None:
    async with open_house(tmp_path / "state") as house:
        await busy(house, memory)
        await house.run(line(memory / "a"), line(memory / "b"))
    async with open_house(tmp_path / "state", max_tasks=1) as house:
        await house.service.adopt()
        first, one, other = house.table
        assert [task.state for task in (first, one, other)] == [State.PAUSED, State.QUEUED, State.QUEUED]
        house.service.cancel(other)
        house.service.kill(first)
        assert (await ended(one), other.state) == (State.DONE, State.CANCELLED)
        assert (memory / "a").exists()


async def test_a_name_is_replaced_when_the_new_task_begins(house: House, memory: Path) -> None:
    old = await house.run_one(line(memory / "t", ""))
    assert await ended(old) is State.DONE
    with pytest.raises(NameTaken):
        await house.run(line(memory / "t", ""))
    with pytest.raises(KtaskfsError, match="no-such"):
        await house.run(f"clear path={memory}/no-such name=t replace=1")
    assert (house.table.require("t"), old.forgotten, house.files()) == (old, False, ["00000001.json"])
    with pytest.raises(SpecError, match="spec 2 of 2"):
        await house.run(line(memory / "t", "replace=1"), f"clear path={memory}/no-such")
    assert house.table.require("t") is old
    new = await house.run_one(line(memory / "t", "replace=1"))
    assert (house.table.require("t"), old.forgotten) == (new, True)
    assert await ended(new) is State.DONE
    assert house.files() == [f"{new.number:08d}.json"]
    assert len(house.table) == 1


async def failing_slowly(house: House, *lines: str) -> None:
    """A write whose first task hangs in its start until its worker is killed."""
    with pytest.raises(KtaskfsError):
        await house.run(*lines)


async def test_what_is_being_replaced_is_not_resumed(house: House, memory: Path) -> None:
    """Its files may still be open; the worker would lose its task when the new one begins."""
    old = await busy(house, memory, 2)
    house.service.kill(old)
    assert await ended(old) is State.INTERRUPTED
    worker = await stop_spare(house)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.run, line(memory / "busy", "replace=1"))
        await until(lambda: house.table.require("busy") is not old, "the new one starts")
        with pytest.raises(WrongState):
            await house.service.resume(old, me())
        worker.resume()
    assert (old.forgotten, old.worker) == (True, None)
    assert await ended(house.table.require("busy")) is State.DONE


async def test_one_that_waits_belongs_to_its_write_until_that_is_answered(house: House, memory: Path) -> None:
    """The write may still fail, and then nothing of it may be left."""
    first = await busy(house, memory, 2)
    await stop_spare(house)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(failing_slowly, house, line(memory / "none" / "a", ""), line(memory / "b"))
        await until(lambda: len(house.table) == 3, "the write is under way")
        _, starting, waiting = house.table
        await until(lambda: starting.worker is not None, "the first one has a worker")
        house.service.kill(first)
        await ended(first)
        house.service.cancel(waiting)
        with pytest.raises(WrongState):
            house.service.forget(waiting)
        with pytest.raises(WrongState):
            await house.service.resume(waiting, me())
        assert [name for name in house.files() if name.endswith(".json")] == ["00000001.json"]
        house.service.kill(starting)
    assert [task.name for task in house.table] == ["busy"]
    assert house.files() == ["00000001.json"]


async def test_one_that_waits_is_not_replaced_until_its_write_is_answered(house: House, memory: Path) -> None:
    """The write may still fail, and then the name is that of the old task again."""
    old = await house.run_one(line(memory / "t", ""))
    await ended(old)
    await busy(house, memory, 2)
    await stop_spare(house)
    async with trio.open_nursery() as nursery:
        lines = line(memory / "none" / "a", ""), line(memory / "t", "queue=1 replace=1")
        nursery.start_soon(failing_slowly, house, *lines)
        await until(lambda: len(house.table) == 3, "the write is under way")
        starting = house.table.require("a")
        await until(lambda: starting.worker is not None, "the first one has a worker")
        with pytest.raises(NameTaken):
            await house.run(line(memory / "t", "queue=1 replace=1"))
        house.service.kill(starting)
    assert (house.table.require("t"), old.forgotten) == (old, False)
    assert [task.name for task in house.table] == ["busy", "t"]


async def test_a_value_set_before_the_answer_writes_no_second_record_of_the_name(house: House, memory: Path) -> None:
    old = await house.run_one(line(memory / "t", ""))
    await ended(old)
    worker = await stop_spare(house)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.run, line(memory / "t", "replace=1"))
        await until(lambda: house.table.require("t").worker is not None, "the new one starts")
        new = house.table.require("t")
        change_texts(new, nice="3")
        house.service.save(new)
        assert [name for name in house.files() if name.endswith(".json")] == [f"{old.number:08d}.json"]
        worker.resume()
    assert await ended(new) is State.DONE
    assert house.record(new)["parameters"]["nice"] == "3"


async def test_a_value_set_between_the_begin_and_the_answer_is_recorded(house: House, memory: Path) -> None:
    def set_nice(task: Task) -> None:
        if task.state is State.RUNNING:
            change_texts(task, nice="3")
            house.service.save(task)

    house.table.observers.append(set_nice)
    task = await house.run_one(f"fallocate path={memory}/a length=1M chunk=4096 rate_max=1")
    assert house.record(task)["parameters"]["nice"] == "3"


async def test_one_that_waits_has_replaced_the_old_one(house: House, memory: Path) -> None:
    old = await house.run_one(line(memory / "t", ""))
    await ended(old)
    first = await busy(house, memory)
    new = await house.run_one(line(memory / "t", "queue=1 replace=1"))
    assert (new.state, old.forgotten) == (State.QUEUED, True)
    assert {f"{old.number:08d}.json", f"{new.number:08d}.json"} & set(house.files()) == {f"{new.number:08d}.json"}
    house.service.kill(first)
    assert await ended(new) is State.DONE


async def test_what_is_not_ended_or_not_ones_own_is_not_replaced(house: House, memory: Path) -> None:
    house.service.create_empty("new", os.geteuid(), os.getegid(), ALL_CAPABILITIES)
    await house.paused(memory / "busy", more="name=busy")
    theirs = await house.run_one(line(memory / "theirs", ""))
    await ended(theirs)
    theirs.uid += 1
    for name in ("new", "busy", "theirs"):
        with pytest.raises(NameTaken):
            await house.run(line(memory / name, "replace=1"))
    theirs.uid -= 1
    assert (await house.run_one(line(memory / "free", "replace=1"))).name == "free"
