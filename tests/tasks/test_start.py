"""Starting tasks with a real spawner: all or none, and nothing left of those that did not begin."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
import trio

from ktaskfs.errors import (
    KtaskfsError,
    NameTaken,
    SpecError,
    TargetError,
    TaskForgotten,
    TooManyTasks,
    WorkerLost,
    WrongState,
)
from ktaskfs.host.process import cpu_time
from ktaskfs.tasks import new_worker as new_worker_module
from ktaskfs.tasks import starter as starter_module
from ktaskfs.tasks.history import ALL_CAPABILITIES
from ktaskfs.tasks.task import State
from tests.support.poll import until as wait_until
from tests.support.processes import has_ended
from tests.support.tasks import change_texts
from tests.tasks.house import House, ended, me, open_files, stop_spare, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ktaskfs.tasks.task import Task


async def test_a_task_runs_to_its_end_and_leaves_its_record_only(house: House, memory: Path) -> None:
    before = open_files()
    task = await house.run_one(f"fallocate path={memory}/file length=4M")
    assert await ended(task) is State.DONE
    assert (task.done(task.snapshot()), task.total(task.snapshot())) == (4 << 20, 4 << 20)
    assert os.stat(memory / "file").st_blocks * 512 == 4 << 20
    assert house.files() == ["00000001.json"]
    assert task.worker is None
    await until(lambda: open_files() == before, "all descriptors are closed")
    assert house.table.last_task == {os.geteuid(): ["fallocate-1"]}


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("clear path=/dev/shm/there-is-no-such-file", errno.ENOENT),
        ("clear path=/dev/shm", errno.EISDIR),
        ("fallocate path=/dev/shm/kt-refused length=1E", errno.ENOSPC),
        ("fallocate path=/dev/shm/kt-refused length=5", errno.EINVAL),
    ],
)
async def test_nothing_is_left_of_a_task_that_is_refused(house: House, line: str, number: int) -> None:
    before = open_files()
    with pytest.raises(TargetError) as refusal:
        await house.run(line)
    assert refusal.value.errno == number
    assert len(house.table) == 0
    assert house.files() == []
    assert "kt-refused" not in os.listdir("/dev/shm")
    await until(lambda: open_files() == before, "all descriptors are closed")
    await until(lambda: not house.launcher._children, "the worker is forgotten")
    house.table.check_room(os.geteuid(), house.settings["max_tasks"])


async def test_of_several_tasks_all_begin_or_none(house: House, memory: Path) -> None:
    good = [f"fallocate path={memory}/{name} length=64K name={name}" for name in ("a", "b")]
    before = open_files()
    with pytest.raises(SpecError, match="^spec 3 of 3: open /dev/shm/no-such: ") as refusal:
        await house.run(*good, "clear path=/dev/shm/no-such")
    assert (refusal.value.errno, refusal.value.line) == (errno.ENOENT, "clear path=/dev/shm/no-such")
    assert len(house.table) == 0
    assert house.files() == []
    await until(lambda: open_files() == before, "all descriptors are closed")
    await until(lambda: list(memory.iterdir()) == [], "what was prepared is taken back")
    tasks = await house.run(*good)
    assert [task.name for task in tasks] == ["a", "b"]
    assert [await ended(task) for task in tasks] == [State.DONE] * 2


async def test_a_made_up_name_is_not_one_that_the_same_write_gives(house: House, memory: Path) -> None:
    first, second = await house.run(
        f"fallocate path={memory}/a length=64K", f"fallocate path={memory}/b length=64K name=fallocate-1"
    )
    assert (first.name, second.name) == ("fallocate-2", "fallocate-1")
    assert list(house.table) == [first, second]
    for task in (first, second):
        await ended(task)
        house.service.forget(task)
    house.table.check_room(os.geteuid(), house.settings["max_tasks"])


async def test_limits_and_names_are_checked_before_anything_is_made(house: House, memory: Path) -> None:
    line = f"fallocate path={memory}/file length=64K"
    house.set("max_tasks", 1)
    before = open_files()
    with pytest.raises(TooManyTasks):
        await house.run(line, line)
    house.set("max_tasks", 2)
    with pytest.raises(NameTaken):
        await house.run(f"{line} name=a", f"{line} name=a")
    assert (len(house.table), house.files(), os.listdir(memory), open_files()) == (0, [], [], before)


async def test_a_start_that_is_cancelled_leaves_nothing(house: House, memory: Path) -> None:
    house.launcher.start()
    before = open_files()
    spawner = house.spawner()
    spawner.suspend()
    errors: list[KtaskfsError] = []

    async def write() -> None:
        try:
            await house.run(f"fallocate path={memory}/file length=64K", f"fallocate path={memory}/other length=64K")
        except KtaskfsError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await until(lambda: len(house.table) == 2, "the tasks are starting")
        first, second = house.table
        house.service.cancel(second)
        house.service.cancel(first)
    assert [error.errname for error in errors] == ["ECANCELED"]
    assert len(house.table) == 0
    spawner.resume()
    task = await house.run_one(f"fallocate path={memory}/after length=64K")
    assert await ended(task) is State.DONE
    await until(lambda: os.listdir(memory) == ["after"], "the worker that came too late has taken back its file")
    await until(lambda: open_files() == before, "all descriptors are closed")


async def test_a_worker_that_answers_nothing_is_killed(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_answers(monkeypatch, 0.3, cpu_time)
    worker = await stop_spare(house)
    with pytest.raises(WorkerLost, match="could not open and reserve") as error:
        await house.run(f"fallocate path={memory}/file length=64K")
    assert error.value.errno == errno.ETIMEDOUT
    await until(lambda: not house.launcher._children, "its end is heard")
    assert has_ended(worker)


async def test_a_worker_that_is_busy_is_waited_for(house: House, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have a million files to count; a worker that uses a CPU does not hang."""
    looks: list[int] = []

    def nanoseconds(pid: int) -> int:
        looks.append(pid)
        return len(looks)

    limit_answers(monkeypatch, 0.05, nanoseconds)
    worker = await stop_spare(house)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.run, f"fallocate path={memory}/file length=64K name=t")
        await until(lambda: len(looks) > 5, "it was given time again and again")
        assert house.table.require("t").state is State.STARTING
        worker.resume()
    assert await ended(house.table.require("t")) is State.DONE


def limit_answers(monkeypatch: pytest.MonkeyPatch, seconds: float, used: Callable[[int], int]) -> None:
    """A worker hangs after ``seconds`` without ``used`` CPU time; the spawner may take longer to fork it."""

    def look(pid: int) -> int:
        monkeypatch.setattr(new_worker_module, "TIMEOUT", seconds)
        return used(pid)

    monkeypatch.setattr(new_worker_module, "cpu_time", look)


@pytest.mark.usefixtures("hasty")
async def test_a_killed_start_leaves_no_worker(house: House, memory: Path) -> None:
    worker = await stop_spare(house)
    task = await house.run_one(f"fallocate path={memory}/file length=64K")
    await until(lambda: task.worker is not None, "the worker is known")
    house.service.kill(task)
    assert await ended(task) is State.CANCELLED
    assert has_ended(worker)
    assert task.worker is None


@pytest.mark.usefixtures("hasty")
async def test_a_cancelled_start_lasts_until_its_worker_has_taken_back_what_it_prepared(
    house: House, memory: Path
) -> None:
    worker = await stop_spare(house)
    task = await house.run_one(f"fallocate path={memory}/file length=64K")
    await until(lambda: task.worker is not None, "the worker is known")
    house.service.cancel(task)
    with pytest.raises(WrongState):
        await house.service.resume(task, me())
    await until(lambda: starting(house) == [], "the start is given up")
    assert (task.state, has_ended(worker)) == (State.STARTING, False)
    worker.resume()
    assert await ended(task) is State.CANCELLED
    assert has_ended(worker)
    await house.service.resume(task, me())
    assert await ended(task) is State.DONE


def starting(house: House) -> list[Task]:
    """Tasks whose start can still be given up."""
    return [task for task, batch in house.service._starter._batches.items() if batch.error is None]


@pytest.mark.usefixtures("hasty")
async def test_a_cancelled_start_that_hangs_is_killed_in_the_end(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await stop_spare(house)
    task = await house.run_one(f"fallocate path={memory}/file length=64K")
    await until(lambda: task.worker is not None, "the worker is known")
    monkeypatch.setattr(new_worker_module, "TIMEOUT", 0.1)
    house.service.cancel(task)
    assert await ended(task) is State.CANCELLED
    assert has_ended(worker)


async def test_a_refused_write_does_not_wait_for_ever_for_what_is_taken_back(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start of the same task does: two workers would be at one target."""
    task = await house.run_one(f"fallocate path={memory}/file length=64K name=t")
    assert await ended(task) is State.DONE
    task = house.service.create_empty("made", os.geteuid(), os.getegid(), ALL_CAPABILITIES)
    task.define(house.service.operations["fallocate"], {"path": str(memory / "other"), "length": "64K"})
    worker = await stop_spare(house)
    monkeypatch.setattr(starter_module, "GRACE", 0.0)
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            with pytest.raises(KtaskfsError, match="cancelled before the work began"):
                await house.service.start(task, me())

        nursery.start_soon(write)
        await until(lambda: task.worker is not None, "the worker is known")
        house.service.cancel(task)
    assert (task.state, task.worker, has_ended(worker)) == (State.NEW, None, False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.service.start, task, me())
        await until(lambda: task.state is State.STARTING, "the second start")
        assert task.worker is None
        worker.resume()
    assert await ended(task) is State.DONE
    assert has_ended(worker)


async def test_what_several_tasks_prepared_is_taken_back_in_reverse(house: House, memory: Path) -> None:
    file = memory / "file"
    file.touch()
    for _ in range(5):
        with pytest.raises(SpecError, match="no-such"):
            await house.run(
                f"fallocate path={file} length=16M",
                f"fallocate path={file} offset=16M length=16M",
                "clear path=/dev/shm/no-such",
            )
        assert (file.stat().st_size, file.stat().st_blocks) == (0, 0)


async def test_an_empty_task_is_told_and_started(house: House, memory: Path) -> None:
    before = open_files()
    task = house.service.create_empty("mine", os.geteuid(), os.getegid(), ALL_CAPABILITIES)
    with pytest.raises(KtaskfsError, match="no operation is set"):
        await house.service.start(task, me())
    task.define(house.service.operations["fallocate"], {"path": str(memory / "file")})
    with pytest.raises(TargetError, match="length is missing"):
        await house.service.start(task, me())
    assert task.state is State.NEW
    change_texts(task, length="65536")
    await house.service.start(task, me())
    with pytest.raises(WrongState):
        await house.service.start(task, me())
    assert await ended(task) is State.DONE
    await until(lambda: open_files() == before, "all descriptors are closed")


async def test_a_task_that_two_remove_at_once_is_counted_once(house: House) -> None:
    """Each user's view has a directory of its own, so the kernel lets both through."""
    house.set("max_tasks", 1)
    task = house.service.create_empty("mine", 1000, 1000, ALL_CAPABILITIES)
    house.service.forget(task)
    with pytest.raises(TaskForgotten):
        house.service.forget(task)
    house.service.create_empty("next", 1000, 1000, ALL_CAPABILITIES)
    with pytest.raises(TooManyTasks):
        house.service.create_empty("other", 1000, 1000, ALL_CAPABILITIES)


async def test_a_name_can_be_used_again_after_its_task_is_forgotten(house: House, memory: Path) -> None:
    line = f"fallocate path={memory}/file length=64K name=again"
    first = await house.run_one(line)
    await ended(first)
    house.service.forget(first)
    assert house.files() == []
    second = await house.run_one(line)
    assert await ended(second) is State.DONE
    assert house.files() == ["00000002.json"]
    assert house.record(second)["name"] == "again"


async def test_without_a_descriptor_to_watch_the_worker_the_start_is_refused(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_descriptor(pid: int) -> int | None:
        wait_until((memory / "file").exists, "the worker has made its file")  # which the refusal must not leave
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = open_files()
    with monkeypatch.context() as patch:
        patch.setattr("ktaskfs.host.credentials.start_time", no_descriptor)
        with pytest.raises(TargetError) as refused:
            await house.run(f"fallocate path={memory}/file length=64K")
    assert refused.value.errno == errno.EMFILE
    assert "Traceback" not in caplog.text
    assert (list(house.table), house.files(), (memory / "file").exists()) == ([], [], False)
    await until(lambda: open_files() == before, "all descriptors are closed")
