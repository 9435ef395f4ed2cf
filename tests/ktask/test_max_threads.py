"""Changes of ``max_threads`` while the task runs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from ktaskfs.ktask import HelperBudget, Job, Node
from ktaskfs.ktask.scheduler import Scheduler
from tests.ktask.fakes import TIMEOUT, Background, FakeMachine, Gate, Ledger, control

if TYPE_CHECKING:
    from ktaskfs.ktask.task_thread import TaskThread


def test_more_threads_while_it_runs() -> None:
    gate, ledger = Gate(), Ledger()
    job = Job([Node(0, 10)], control(gate, max_chunk_size=1, max_threads=1, monitor=ledger))
    run = Background(job.run)
    gate.wait_begun(1)
    assert gate.none_begun()
    job.set_max_threads(4)
    gate.wait_begun(3)
    assert gate.none_begun()
    gate.end_to(10)
    assert run.result().threads == 4


def test_fewer_threads_while_it_runs_and_their_slots_again() -> None:
    gate, ledger = Gate(), Ledger()
    ended = threading.Semaphore(0)
    ledger.after = lambda: ended.release() if ledger.calls[-1][0] == "thread_ended" else None
    job = Job([Node(0, 20)], control(gate, max_chunk_size=1, max_threads=4, monitor=ledger))
    run = Background(job.run)
    gate.wait_begun(4)
    job.set_max_threads(2)
    assert gate.none_begun()
    gate.end_to(4)
    for _ in range(2):
        assert ended.acquire(timeout=TIMEOUT)
    gate.wait_begun(2)
    assert len(ledger.live) == 2
    assert 0 in ledger.live, "the first thread never ends before the work does"
    job.set_max_threads(3)
    gate.wait_begun(1)
    assert sorted(ledger.live)[-1] <= 3
    gate.end_to(20)
    outcome = run.result()
    assert outcome.threads == 4
    assert sum(share.units for share in outcome.per_thread) == 20
    assert len(outcome.per_thread) == 4


def test_a_helper_too_many_ends_though_the_first_thread_asks_before_it() -> None:
    ledger = Ledger()
    first, own = threading.get_native_id(), []
    begun, asked, went_on = threading.Event(), threading.Event(), threading.Event()

    def after() -> None:
        if ledger.calls[-1] == ("thread_ended", 1) or len([c for c in ledger.named("chunk_assigned") if c[0] == 1]) > 1:
            went_on.set()

    def each(start: int, end: int) -> None:
        if threading.get_native_id() != first:
            begun.set()
            assert asked.wait(TIMEOUT)
            return
        own.append(start)
        if len(own) == 1:
            assert begun.wait(TIMEOUT)
            job.set_max_threads(1)
        elif len(own) == 2:
            asked.set()
            assert went_on.wait(TIMEOUT)

    ledger.after = after
    job = Job([Node(0, 10)], control(each, max_chunk_size=1, max_threads=2, monitor=ledger))
    assert [share.chunks for share in job.run().per_thread] == [9, 1]


def test_threads_set_before_the_run_hold_from_its_start() -> None:
    together = threading.Barrier(3)
    job = Job([Node(0, 3)], control(lambda a, b: together.wait(TIMEOUT), max_chunk_size=1, max_threads=1))
    job.set_max_threads(3)
    assert job.run().threads == 3


def test_a_paused_helper_too_many_ends_without_a_resume() -> None:
    ledger = Ledger()
    ended = threading.Event()
    ledger.after = lambda: ended.set() if ledger.named("thread_ended") else None
    job = Job([Node(0, 4)], control(lambda a, b: None, max_threads=2, monitor=ledger))
    job.pause()
    run = Background(job.run)
    for _ in range(2):
        assert ledger.waiting.acquire(timeout=TIMEOUT)
    job.set_max_threads(1)
    assert ended.wait(TIMEOUT)
    assert ledger.named("thread_ended") == [(1,)]
    job.resume()
    run.result()


def test_the_thread_that_others_have_left_does_not_get_all_at_once() -> None:
    """If it got all the work in one chunk, no control could reach it any more."""
    sizes: list[int] = []

    def each(start: int, end: int) -> None:
        sizes.append(end - start)
        job.set_max_threads(1)

    job = Job([Node(0, 1000)], control(each, max_threads=4))
    assert job.run().units_done == 1000
    assert max(sizes) <= 125


def test_a_change_that_is_interrupted_leaves_nobody_who_never_begins() -> None:
    class Interrupted(HelperBudget):
        armed = False

        def hire(self, helper: object) -> bool:
            granted = super().hire(helper)
            if self.armed:
                raise KeyboardInterrupt
            return granted

    machine, ledger, gate = FakeMachine(), Ledger(), Gate()
    budget = Interrupted(machine, 100)
    job = Job(
        [Node(0, 8)],
        control(gate, max_chunk_size=1, max_threads=2, machine=machine, monitor=ledger, budget=budget),
    )
    run = Background(job.run)
    gate.wait_begun(2)
    budget.armed = True
    with pytest.raises(KeyboardInterrupt):
        job.set_max_threads(4)
    budget.armed = False
    assert sorted(ledger.live) == [0, 1]
    job.set_max_threads(4)
    gate.wait_begun(2)
    assert sorted(ledger.live) == [0, 1, 2, 3]
    gate.end_to(8)
    assert run.result().units_done == 8
    assert [budget.hire(number) for number in range(65)].count(True) == 64


def test_an_interrupt_before_the_run_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job([Node(0, 8)], control(lambda start, end: None, max_threads=2))

    def interrupted(scheduler: Scheduler, max_threads: int | None = None) -> list[TaskThread]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "hire", interrupted)
        with pytest.raises(KeyboardInterrupt):
            job.set_max_threads(4)
    assert job.run().units_done == 8
