"""Which starts that come to nothing are refused, for the counter and the log, and which are cancelled."""

from __future__ import annotations

import contextlib
import errno
import logging
from typing import TYPE_CHECKING

import pytest
import trio

from ktaskfs.control.metrics import Metrics
from ktaskfs.control.transitions import Transitions
from ktaskfs.errors import KtaskfsError
from ktaskfs.host.kernel import Kernel
from ktaskfs.tasks import starter
from ktaskfs.tasks.task import State
from tests.support.poll import DEADLINE
from tests.tasks.house import OPERATIONS, House, busy, ended, line, me, stop_spare, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from ktaskfs.tasks.task import Task


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    """Counters that see what is told to ``count``."""
    with contextlib.closing(Kernel.open()) as kernel:
        yield Metrics(OPERATIONS, kernel, lambda: 0)


async def refused(metrics: Metrics) -> int:
    """``ktaskfs_tasks_refused_total`` of all operations."""
    return sum((await metrics.facts()).refused.values())


def warnings(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.levelno >= logging.WARNING for record in caplog.records)


async def cancelled_while_queued(house: House, memory: Path) -> Task:
    first = await busy(house, memory)
    (task,) = await house.run(line(memory / "sub" / "t"))
    house.service.cancel(task)
    house.service.kill(first)
    await ended(first)
    return task


async def cancelled_late(house: House, memory: Path) -> Task:
    await stop_spare(house)
    task = await house.run_one(line(memory / "sub" / "t", ""))
    await until(lambda: task.worker is not None, "the worker is known")
    house.service.kill(task)
    await ended(task)
    return task


async def cancelled_in_the_write(
    house: House, task: Callable[[], Task], write: Callable[[], Awaitable[object]]
) -> None:
    """Cancel the only start while its write waits for it."""
    worker = await stop_spare(house)

    async def start() -> None:
        with pytest.raises(KtaskfsError) as error:
            await write()
        assert error.value.errno == errno.ECANCELED

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await until(lambda: len(house.table) > 0 and task().worker is not None, "it has a worker")
        house.service.cancel(task())
        worker.resume()


@pytest.mark.usefixtures("workers")
async def test_a_refused_resume_of_a_task_cancelled_in_the_queue(
    house: House, memory: Path, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    """What ended the earlier run says nothing about this start."""
    Transitions(house.table).observers.append(metrics.count)
    task = await cancelled_while_queued(house, memory)
    before = warnings(caplog)
    with pytest.raises(KtaskfsError, match="No such file"):
        await house.service.resume(task, me())
    assert (task.state, await refused(metrics), warnings(caplog) - before) == (State.CANCELLED, 1, 1)


@pytest.mark.usefixtures("hasty")
async def test_a_refused_resume_of_a_task_cancelled_in_a_late_start(
    house: House, memory: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Transitions(house.table).observers.append(metrics.count)
    task = await cancelled_late(house, memory)
    assert (task.state, await refused(metrics), warnings(caplog)) == (State.CANCELLED, 0, 0)
    monkeypatch.setattr(starter, "PATIENCE", DEADLINE)
    with pytest.raises(KtaskfsError, match="No such file"):
        await house.service.resume(task, me())
    assert (task.state, await refused(metrics), warnings(caplog)) == (State.CANCELLED, 1, 1)


@pytest.mark.usefixtures("workers")
async def test_a_start_that_is_cancelled_before_its_write_is_answered(
    house: House, memory: Path, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    Transitions(house.table).observers.append(metrics.count)
    caplog.set_level(logging.INFO)
    await cancelled_in_the_write(house, lambda: house.table.require("t"), lambda: house.run(line(memory / "t", "")))
    assert (len(house.table), await refused(metrics), warnings(caplog)) == (0, 0, 0)
    assert caplog.messages[-1] == f"task t: fallocate {memory}/t cancelled before the work began"
    assert vars(caplog.records[-1])["KTASK_STATE"] == "cancelled"


@pytest.mark.usefixtures("workers")
async def test_a_plan_that_is_refused_is_an_answer(
    house: House, memory: Path, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    Transitions(house.table).observers.append(metrics.count)
    for more, count in (("plan=1", 0), ("", 1)):
        with pytest.raises(KtaskfsError, match="No such file"):
            await house.run(line(memory / "sub" / "t", more))
        assert (await refused(metrics), warnings(caplog)) == (count, count)
    first = await busy(house, memory)
    (task,) = await house.run(line(memory / "sub" / "t", "plan=1 queue=1"))
    house.service.kill(first)
    assert (await ended(task), await refused(metrics)) == (State.FAILED, 1)


@pytest.mark.usefixtures("workers")
async def test_a_cancelled_resume_of_a_failed_task(
    house: House, memory: Path, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    first = await busy(house, memory)
    (task,) = await house.run(line(memory / "sub" / "t"))
    house.service.kill(first)
    assert await ended(task) is State.FAILED
    (memory / "sub").mkdir()
    Transitions(house.table).observers.append(metrics.count)
    before = warnings(caplog)
    await cancelled_in_the_write(house, lambda: task, lambda: house.service.resume(task, me()))
    assert (task.state, await refused(metrics), warnings(caplog) - before) == (State.FAILED, 0, 0)
