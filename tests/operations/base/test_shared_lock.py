from __future__ import annotations

import threading

from ktaskfs.operations.base.shared_lock import SharedLock
from tests.support.poll import DEADLINE

MOMENT = 0.05
"""Seconds in which something must not happen; a failure can be missed, never invented."""


def begin(*targets: threading.Thread) -> None:
    for each in targets:
        each.daemon = True
        each.start()


def test_many_together_and_one_alone() -> None:
    turns, both, leave, alone = SharedLock(), threading.Barrier(3), threading.Event(), threading.Event()

    def share() -> None:
        with turns.together():
            both.wait(DEADLINE)
            leave.wait(DEADLINE)

    def claim() -> None:
        with turns.alone():
            alone.set()

    sharers, claimer = [threading.Thread(target=share) for _ in range(2)], threading.Thread(target=claim)
    begin(*sharers)
    both.wait(DEADLINE)
    begin(claimer)
    assert not alone.wait(MOMENT)
    leave.set()
    assert alone.wait(DEADLINE)
    for each in (*sharers, claimer):
        each.join(DEADLINE)
        assert not each.is_alive()


def test_who_waits_to_be_alone_goes_first() -> None:
    turns, order, late = SharedLock(), list[str](), threading.Event()

    def claim() -> None:
        with turns.alone():
            order.append("alone")

    def share() -> None:
        late.set()
        with turns.together():
            order.append("together")

    claimer, sharer = threading.Thread(target=claim), threading.Thread(target=share)
    with turns.together():
        begin(claimer)
        while not turns._waiting:
            claimer.join(0.001)
        begin(sharer)
        assert late.wait(DEADLINE)
        sharer.join(MOMENT)
        assert order == []
    for each in (claimer, sharer):
        each.join(DEADLINE)
    assert order == ["alone", "together"]


def test_an_exception_lets_go() -> None:
    turns = SharedLock()
    for lock in (turns.together, turns.alone):
        try:
            with lock():
                raise KeyError
        except KeyError:
            pass
    with turns.alone():
        pass
