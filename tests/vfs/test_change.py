"""Change wakes each who waits, once for each change."""

from __future__ import annotations

import trio
import trio.testing

from ktaskfs.vfs import Change, WatchedChange, Watcher


def test_a_change_wakes_everybody_once() -> None:
    change = Change()
    woken: list[str] = []
    change.await_next("a", lambda: woken.append("a"))
    change.await_next("b", lambda: woken.append("b"))
    change.notify()
    change.notify()
    assert woken == ["a", "b"]
    assert (change.count, change.waiting) == (2, 0)


def test_a_later_wake_of_the_same_waiter_takes_the_place_of_the_earlier() -> None:
    change = Change()
    woken: list[int] = []
    change.await_next("a", lambda: woken.append(1))
    change.await_next("a", lambda: woken.append(2))
    assert change.waiting == 1
    change.notify()
    assert woken == [2]


def test_a_waiter_may_wait_again_while_it_is_being_woken() -> None:
    change = Change()
    woken: list[int] = []

    def wake() -> None:
        woken.append(change.count)
        change.await_next("a", wake)

    change.await_next("a", wake)
    change.notify()
    change.notify()
    assert woken == [1, 2]


def test_a_forgotten_waiter_is_not_woken() -> None:
    change = Change()
    woken: list[int] = []
    change.await_next("a", lambda: woken.append(1))
    change.forget("a")
    change.forget("never waited")
    change.notify()
    assert woken == []


class Meter:
    """Something that moves without a word; ``looks`` counts who asked."""

    def __init__(self) -> None:
        self.value: int | None = 0
        self.looks = 0

    def mark(self) -> int | None:
        self.looks += 1
        return self.value


async def test_a_watched_change_wakes_when_the_mark_moves(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    meter = Meter()
    change = WatchedChange(meter.mark, Watcher(nursery, 1.0))
    woken: list[float] = []
    change.await_next("a", lambda: woken.append(trio.current_time()))
    await trio.sleep(3.5)  # the first look finds something new, and so wakes
    assert len(woken) == 1
    seen = change.count
    change.await_next("a", lambda: woken.append(trio.current_time()))
    await trio.sleep(10)
    assert (len(woken), change.count) == (1, seen)
    meter.value = 1
    await trio.sleep(2)
    assert (len(woken), change.count) == (2, seen + 1)


async def test_nobody_looks_when_nobody_waits(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    meter = Meter()
    watcher = Watcher(nursery, 1.0)
    change = WatchedChange(meter.mark, watcher)
    await trio.sleep(10)
    assert meter.looks == 0
    change.await_next("a", lambda: None)
    assert watcher.watching == 1
    change.forget("a")
    await trio.sleep(10)
    assert (meter.looks, watcher.watching) == (0, 0)


async def test_what_no_longer_moves_is_no_longer_watched_but_still_notified(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    meter = Meter()
    watcher = Watcher(nursery, 1.0)
    change = WatchedChange(meter.mark, watcher)
    seen = change.count
    meter.value = None
    woken: list[str] = []
    change.await_next("a", lambda: woken.append("moved to its end"))
    await trio.sleep(10)
    assert (woken, change.count, watcher.watching) == (["moved to its end"], seen + 1, 0)
    change.await_next("a", lambda: woken.append("told"))
    await trio.sleep(10)
    assert watcher.watching == 0
    change.notify()
    assert woken[1:] == ["told"]


async def test_another_reader_does_not_swallow_the_wake_of_one_who_waits(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    meter = Meter()
    change = WatchedChange(meter.mark, Watcher(nursery, 1.0))
    woken: list[str] = []
    change.notify()
    change.await_next("a", lambda: woken.append("a"))
    await trio.sleep(1.5)
    woken.clear()
    change.await_next("a", lambda: woken.append("a"))
    meter.value = 1
    seen = change.count  # a second reader takes note of the change before the watcher does
    await trio.sleep(2)
    assert (woken, change.count) == (["a"], seen)
