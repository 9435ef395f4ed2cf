"""``info/tasks`` of many tasks: made in slices, shared by its readers, and never older than a change."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio

from ktaskfs.control.access import Access
from ktaskfs.control.task_list import HEADER, MADE, ORDER, SLICE, Form, TaskList
from ktaskfs.control.transitions import Transitions
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.tasks.table import TaskTable
from ktaskfs.tasks.task import Origin, State, Task
from ktaskfs.tasks.tunables import Settings
from tests.support.tasks import change_texts

if TYPE_CHECKING:
    from trio.testing import MockClock

MANY = 1000
ANN, BEN = 1000, 1001


class House:
    def __init__(self, hidepid: int = 0) -> None:
        self.table = TaskTable(Settings({}))
        self.tasks = TaskList(self.table, Access(0, 0, hidepid=hidepid), lambda: None)
        Transitions(self.table).observers.append(self.tasks.observe)

    def add(self, number: int, state: State = State.DONE, uid: int = ANN) -> Task:
        task = Task(Origin.now(number, f"t{number}", uid, uid))
        task.define(find_operations()["clear"], {})
        task.state = state
        self.table.add(task)
        return task

    async def rows(self, uid: int = 0) -> list[list[str]]:
        text = (await self.tasks.text(uid, Form.TABLE)).decode()
        return [line.split() for line in text.splitlines()[1:]]


def test_every_state_has_its_place() -> None:
    assert sorted(ORDER) == sorted(State)


async def test_columns_are_steady_and_aligned() -> None:
    house = House()
    for number, state in enumerate(State, 1):
        house.add(number, state)
    lines = (await house.tasks.text(0, Form.TABLE)).decode().splitlines()
    assert lines[0].split() == list(HEADER)
    starts = [lines[0].index(f" {name}") for name in HEADER[1:]]
    assert all(line[at] == " " != line[at + 1] for line in lines[1:] for at in starts)
    assert [line.split()[2] for line in lines[1:]] == list(ORDER)


@pytest.mark.parametrize("form", Form)
async def test_others_have_their_turn_while_a_long_text_is_made(form: Form) -> None:
    house = House()
    for number in range(MANY):
        house.add(number)
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        await house.tasks.text(0, form)
        nursery.cancel_scope.cancel()
    assert turns >= MANY * MADE // SLICE


@pytest.mark.parametrize("form", Form)
async def test_a_crowd_of_readers_shares_a_text(form: Form, autojump_clock: MockClock) -> None:
    house = House()
    house.add(1, State.RUNNING)
    texts: list[bytes] = []

    async def read() -> None:
        texts.append(await house.tasks.text(0, form))

    async with trio.open_nursery() as nursery:
        for _ in range(512):
            nursery.start_soon(read)
    assert len({id(text) for text in texts}) == 1
    await trio.sleep(1)
    assert await house.tasks.text(0, form) is not texts[0]


async def test_no_text_is_older_than_the_last_change(autojump_clock: MockClock) -> None:
    house = House()
    task = house.add(1, State.RUNNING)
    for state in (State.PAUSED, State.RUNNING, State.CANCELLED, State.DONE):
        house.table.move(task, state)
        assert [row[2] for row in await house.rows()] == [state]
    house.table.drop(task)
    assert await house.rows() == []


async def test_a_change_while_a_text_is_made_is_in_the_next(autojump_clock: MockClock) -> None:
    house = House()
    first, *_ = [house.add(number, State.RUNNING) for number in range(MANY)]
    found: list[list[str]] = []

    async def read() -> None:
        found.extend(row for row in await house.rows() if row[0] == first.name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.rows)
        for _ in range(3):
            await trio.lowlevel.checkpoint()  # its row is made
        house.table.move(first, State.CANCELLED)
        nursery.start_soon(read)
    assert [row[2] for row in found] == ["cancelled"]


async def test_who_goes_away_leaves_no_empty_text(autojump_clock: MockClock) -> None:
    house = House()
    house.add(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await house.rows()
    assert len(await house.rows()) == 1


async def test_the_row_of_a_task_that_has_ended_is_kept_until_something_is_set() -> None:
    house = House()
    task = house.add(1, State.FAILED)
    (before,) = json.loads(await house.tasks.text(0, Form.JSON))
    assert before["nice"] == 19
    task.requests = type(task.requests)(nice=3)
    change_texts(task, path="/a")
    house.add(2)
    after, _ = json.loads(await house.tasks.text(0, Form.JSON))
    assert after["nice"] == 3


async def test_a_task_that_is_replaced_while_a_text_is_made_leaves_no_row() -> None:
    house = House()
    tasks = [house.add(number) for number in range(SLICE)]
    rows = house.tasks._rows
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.rows)
        while not rows:
            await trio.lowlevel.checkpoint()
        replaced = next(task for task in tasks if task not in rows)
        house.table.set_aside(replaced)
    house.table.drop(replaced)
    assert set(rows) == set(tasks) - {replaced}


@pytest.mark.parametrize("hidepid", [0, 1, 2])
async def test_each_user_follows_what_the_user_sees(hidepid: int) -> None:
    house = House(hidepid)
    ann, root = house.tasks.follow(ANN), house.tasks.follow(0)
    assert house.tasks.follow(ANN) is ann
    theirs = house.add(1, State.RUNNING, uid=BEN)
    assert (ann.count, root.count) == (int(hidepid < 2), 1)
    house.table.move(theirs, State.PAUSED)
    assert (ann.count, root.count) == (int(hidepid < 2), 2), "its state is not ann's to see"
    own = house.add(2, State.RUNNING)
    house.table.move(own, State.DONE)
    assert (ann.count, root.count) == (int(hidepid < 2) + 2, 4)
