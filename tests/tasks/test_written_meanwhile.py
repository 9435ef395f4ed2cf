"""Parameters that are written while a task starts stay, even if the start fails."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from ktaskfs.errors import TargetError
from ktaskfs.tasks.history import ALL_CAPABILITIES
from ktaskfs.tasks.spec import parse_spec
from ktaskfs.tasks.task import State
from tests.support.tasks import change_texts
from tests.tasks.house import OPERATIONS, House, me, stop_spare, until

if TYPE_CHECKING:
    from pathlib import Path

    from ktaskfs.tasks.spec import Spec
    from ktaskfs.tasks.task import Task

pytestmark = pytest.mark.usefixtures("workers")


async def start_and_write(house: House, task: Task, spec: Spec | None = None) -> None:
    """Start ``task`` in vain, and write two parameters before its worker answers."""

    async def in_vain() -> None:
        with pytest.raises(TargetError, match="No such file"):
            await house.service.start(task, me(), spec)

    worker = await stop_spare(house)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_vain)
        await until(lambda: task.worker is not None, "the worker is known")
        change_texts(task, max_threads="2", rate_max=None)
        house.service.set_live(task)
        worker.resume()
    assert task.state is State.NEW


async def test_those_of_the_operation_stay(house: House, memory: Path) -> None:
    task = house.service.create_empty("mine", os.geteuid(), os.getegid(), ALL_CAPABILITIES)
    before = {"path": str(memory / "none" / "file"), "length": "64K", "nice": "3", "rate_max": "5"}
    task.define(OPERATIONS["fallocate"], before)
    await start_and_write(house, task)
    assert task.texts == {**{name: text for name, text in before.items() if name != "rate_max"}, "max_threads": "2"}


async def test_those_of_a_refused_spec_go_with_it_and_what_was_written_stays(house: House, memory: Path) -> None:
    task = house.service.create_empty("mine", os.geteuid(), os.getegid(), ALL_CAPABILITIES)
    await start_and_write(house, task, parse_spec(f"fallocate path={memory}/none/file length=64K", OPERATIONS))
    assert (task.operation, dict(task.texts)) == (None, {"max_threads": "2"})
