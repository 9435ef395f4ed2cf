"""What others may do while the tasks of a refused write are removed, a few at a time."""

from __future__ import annotations

import errno
import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio

from ktaskfs.errors import TargetError, WrongState
from ktaskfs.tasks.history import ALL_CAPABILITIES
from ktaskfs.tasks.kept_caller import KeptCaller
from ktaskfs.tasks.lifecycle import TAKEN_BACK_AT_ONCE
from tests.tasks.house import House, me

if TYPE_CHECKING:
    from pathlib import Path


async def test_requests_come_in_between_the_removals_of_a_refused_writes_tasks(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid, gid = os.geteuid(), os.getegid()
    tasks = [house.service.create_empty(f"t{number}", uid, gid, ALL_CAPABILITIES) for number in range(50)]
    turns, removed, forget = 0, Counter[int](), house.state.forget

    def note(number: int) -> None:
        removed[turns] += 1
        forget(number)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(house.state, "forget", note)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await house.service._lifecycle.take_back(tasks, {})
        nursery.cancel_scope.cancel()
    assert (list(house.table), house.files(), removed.total()) == ([], [], len(tasks))
    assert max(removed.values()) <= 2 * TAKEN_BACK_AT_ONCE  # in any order within a turn of the event loop


async def test_a_task_of_a_refused_write_cannot_be_started_meanwhile(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptor(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    count, forget, refused = 8 * TAKEN_BACK_AT_ONCE, house.state.forget, trio.Event()

    async def start() -> None:
        with pytest.raises(WrongState, match="start: the write that creates .* is not answered yet"):
            await house.service.start(house.table.require(f"t{count - 1}"), me())
        refused.set()

    def forget_and_start(number: int) -> None:
        forget(number)
        if number == 1:
            nursery.start_soon(start)

    house.set("max_tasks", count)
    lines = [f"fallocate path={memory}/{number} length=64K name=t{number}" for number in range(count)]
    monkeypatch.setattr(house.state, "forget", forget_and_start)
    monkeypatch.setattr(KeptCaller, "of", no_descriptor)
    async with trio.open_nursery() as nursery:
        with pytest.raises(TargetError, match="queue a task"):
            await house.run(*lines, f"fallocate path={memory}/file length=64K queue=1")
    assert refused.is_set()
    assert (list(house.table), house.files(), os.listdir(memory)) == ([], [], [])
