"""The feed of ``events``: the lines of each reader, and the notice to a slow reader."""

from __future__ import annotations

import itertools

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ktaskfs.control.access import Access
from ktaskfs.control.events import BACKLOG_TOTAL, CHUNK, EventFeed
from ktaskfs.control.transitions import Transitions
from ktaskfs.tasks.table import TaskTable
from ktaskfs.tasks.task import Origin, State, Task
from ktaskfs.tasks.tunables import Settings
from ktaskfs.vfs import Caller, Portions

ROOT, ANNE, BERT = Caller(0, 0, 1), Caller(1001, 1001, 2), Caller(1002, 1002, 3)
SECOND = 10**9


class House:
    """A table of tasks and a feed that follows it; the clock shows a second more at each look."""

    def __init__(self, hidepid: int = 0, backlog: int = 100) -> None:
        clock = itertools.count(SECOND, SECOND)
        self.table = TaskTable(Settings({}))
        self.feed = EventFeed(Access(0, 0, hidepid=hidepid), Portions(), now_ns=lambda: next(clock), backlog=backlog)
        Transitions(self.table).observers.append(self.feed.publish)
        self._numbers = itertools.count(1)

    def add(self, name: str, owner: Caller) -> Task:
        task = Task(Origin.now(next(self._numbers), name, owner.uid, owner.gid))
        self.table.add(task)
        return task


async def test_a_line_for_each_change_of_state_from_the_opening_on() -> None:
    house = House()
    task = house.add("vm0", ANNE)
    stream = house.feed.open_stream(ROOT)
    for state in (State.STARTING, State.RUNNING, State.DONE):
        house.table.move(task, state)
    house.table.drop(task)
    house.add("vm1", BERT)
    assert (await stream.next_chunk()).decode().splitlines() == [
        "1.000000 vm0 new starting op=- uid=1001",
        "2.000000 vm0 starting running op=- uid=1001",
        "3.000000 vm0 running done op=- uid=1001",
        "4.000000 vm0 done - op=- uid=1001",
        "5.000000 vm1 - new op=- uid=1002",
    ]


async def test_a_move_to_the_same_state_is_no_event() -> None:
    house = House()
    task = house.add("vm0", ANNE)
    stream = house.feed.open_stream(ROOT)
    house.table.move(task, State.NEW)
    assert not stream.ready()


async def test_an_empty_line_when_nothing_happens(autojump_clock: trio.testing.MockClock) -> None:
    stream = House().feed.open_stream(ROOT)
    before = autojump_clock.current_time()
    assert await stream.next_chunk() == b"\n"
    assert autojump_clock.current_time() - before < 1


@pytest.mark.parametrize(
    ("hidepid", "reader", "seen"),
    [
        (0, ANNE, ["a", "b"]),
        (0, ROOT, ["a", "b"]),
        (1, ANNE, ["a"]),
        (1, BERT, ["b"]),
        (1, ROOT, ["a", "b"]),
        (2, ANNE, ["a"]),
        (2, ROOT, ["a", "b"]),
    ],
)
async def test_others_tasks_are_hidden_as_the_mount_says(hidepid: int, reader: Caller, seen: list[str]) -> None:
    house = House(hidepid)
    stream = house.feed.open_stream(reader)
    house.add("a", ANNE)
    house.add("b", BERT)
    assert [line.split()[1] for line in (await stream.next_chunk()).decode().splitlines()] == seen


async def test_a_reader_that_does_not_keep_up_is_told_how_much_it_lost() -> None:
    house = House(backlog=3)
    slow, other = house.feed.open_stream(ROOT), house.feed.open_stream(ROOT)
    for number in range(5):
        house.add(f"t{number}", ANNE)
        if number == 2:
            assert len((await other.next_chunk()).splitlines()) == 3
    lines = (await slow.next_chunk()).decode().splitlines()
    assert lines[0].split()[1:] == ["-", "-", "-", "lost=2"]
    assert [line.split()[1] for line in lines[1:]] == ["t2", "t3", "t4"]
    assert [line.split()[1] for line in (await other.next_chunk()).decode().splitlines()] == ["t3", "t4"]
    house.add("t5", ANNE)
    assert b"lost" not in await slow.next_chunk()


async def test_a_reader_who_waits_gets_the_line_at_once(autojump_clock: trio.testing.MockClock) -> None:
    house = House()
    stream = house.feed.open_stream(ROOT)
    before = autojump_clock.current_time()
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            assert b" a - new " in await stream.next_chunk()

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        house.add("a", ANNE)
    assert autojump_clock.current_time() == before


async def test_what_one_read_gives_is_bounded_and_the_rest_comes_next() -> None:
    house = House()
    stream = house.feed.open_stream(ROOT)
    names = [f"{number:0>100}" for number in range(100)]
    for name in names:
        house.add(name, ANNE)
    got = b""
    while stream.ready():
        chunk = await stream.next_chunk()
        assert len(chunk) < CHUNK + 250
        got += chunk
    assert [line.split()[1] for line in got.decode().splitlines()] == names


async def test_many_readers_have_a_smaller_backlog_each() -> None:
    house = House(backlog=1024)
    streams = [house.feed.open_stream(ROOT) for _ in range(BACKLOG_TOTAL // 4)]
    for number in range(6):
        house.add(f"t{number}", ANNE)
    lines = (await streams[0].next_chunk()).decode().splitlines()
    assert lines[0].endswith("lost=2")
    assert len(lines) == 1 + 4


async def test_nothing_is_kept_for_a_stream_that_is_closed() -> None:
    house = House()
    stream = house.feed.open_stream(ROOT)
    stream.close()
    house.add("a", ANNE)
    assert (house.feed.readers, stream.ready(), house.feed.change.count) == (0, False, 0)


async def test_poll_learns_of_an_event() -> None:
    house = House()
    stream = house.feed.open_stream(ROOT)
    woken: list[bool] = []
    house.feed.change.await_next("poll", lambda: woken.append(stream.ready()))
    house.add("a", ANNE)
    assert woken == [True]
