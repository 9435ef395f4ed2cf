"""Change wakes each who waits, once for each change."""

from __future__ import annotations

from ktaskfs.vfs import Change


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
