"""Controls of a running task: cancel, pause, resume, threads, rate, nice."""

from __future__ import annotations

import threading

import pytest

from ktaskfs.ktask import HelperBudget, Job, Node, Outcome, TaskError
from tests.ktask.fakes import TIMEOUT, Background, FakeClock, FakeMachine, Ledger, control


class Gate:
    """A chunk function that says when a chunk begins and lets it end when chunks up to it may."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self._changed = threading.Condition()
        self._open_to = 0

    def __call__(self, start: int, end: int) -> None:
        self.begun.release()
        with self._changed:
            assert self._changed.wait_for(lambda: end <= self._open_to, TIMEOUT)

    def end_to(self, position: int) -> None:
        """Chunks up to ``position`` may end."""
        with self._changed:
            self._open_to = position
            self._changed.notify_all()

    def wait_begun(self, chunks: int = 1) -> None:
        for _ in range(chunks):
            assert self.begun.acquire(timeout=TIMEOUT)

    def none_begun(self) -> bool:
        return not self.begun.acquire(blocking=False)


def test_cancel_finishes_the_chunks_that_run_and_begins_no_other() -> None:
    gate = Gate()
    job = Job([Node(0, 10)], control(gate, max_chunk_size=1, max_threads=3))
    run = Background(job.run)
    gate.wait_begun(3)
    assert job.remaining() == (Node(0, 10),), "what runs is not done"
    job.cancel()
    gate.end_to(3)
    outcome = run.result()
    assert gate.none_begun()
    assert outcome.cancelled
    assert outcome.units_done == 3
    assert outcome.remaining() == (Node(3, 7),)


def test_what_remains_keeps_its_numa_node() -> None:
    job = Job([Node(0, 3, 1)], control(lambda a, b: job.cancel(), max_chunk_size=1, max_threads=1))
    assert job.run().remaining() == (Node(1, 2, 1),)


def test_a_job_cancelled_before_its_run_does_nothing() -> None:
    gate = Gate()
    job = Job([Node(0, 10)], control(gate))
    job.cancel()
    outcome = job.run()
    assert outcome.cancelled
    assert outcome.remaining() == (Node(0, 10),)
    assert gate.none_begun()


def test_a_paused_task_waits_and_goes_on_when_resumed() -> None:
    gate, ledger = Gate(), Ledger()
    job = Job([Node(0, 4)], control(gate, max_chunk_size=1, max_threads=2, monitor=ledger))
    run = Background(job.run)
    gate.wait_begun(2)
    job.pause()
    gate.end_to(4)
    for _ in range(2):
        assert ledger.waiting.acquire(timeout=TIMEOUT)
    assert sorted(ledger.named("thread_waits")) == [(0, "paused"), (1, "paused")]
    assert gate.none_begun()
    assert job.outcome().units_done == 2
    job.resume()
    assert run.result().units_done == 4


def test_a_paused_task_can_be_cancelled() -> None:
    gate, ledger = Gate(), Ledger()
    job = Job([Node(0, 4)], control(gate, max_threads=2, monitor=ledger))
    job.pause()
    run = Background(job.run)
    assert ledger.waiting.acquire(timeout=TIMEOUT)
    job.cancel()
    assert run.result().units_done == 0
    assert gate.none_begun()


def test_controls_after_the_end_do_nothing() -> None:
    job = Job([Node(0, 4)], control(lambda start, end: None))
    before = job.run()
    job.cancel()
    job.pause()
    job.resume()
    job.set_max_threads(8)
    job.set_rate(5)
    job.set_nice(5)
    assert job.outcome() == before


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


def test_helpers_are_niced_and_the_first_thread_is_not() -> None:
    gate, ledger, machine = Gate(), Ledger(), FakeMachine(nice=3)
    job = Job([Node(0, 3)], control(gate, max_chunk_size=1, max_threads=3, machine=machine, monitor=ledger, nice=19))
    run = Background(job.run)
    gate.wait_begun(3)
    helpers = {ledger.live[1], ledger.live[2]}
    assert set(machine.niced) == {(tid, 19) for tid in helpers}
    job.set_nice(7)
    assert set(machine.niced[2:]) == {(tid, 7) for tid in helpers}
    gate.end_to(3)
    run.result()


def test_helpers_are_raised_one_at_a_time_once_the_first_thread_has_nothing_left() -> None:
    machine, ledger = FakeMachine(nice=3), Ledger()
    main_done = threading.Event()
    may_end = {1: threading.Semaphore(0), 2: threading.Semaphore(0)}
    helpers_in = threading.Semaphore(0)
    raised = threading.Semaphore(0)
    main: list[int] = []

    class Machine(FakeMachine):
        def set_nice(self, tid: int, nice: int) -> None:
            super().set_nice(tid, nice)
            if nice == 3:
                raised.release()

    machine = Machine(nice=3)

    def each(start: int, end: int) -> None:
        tid = threading.get_native_id()
        slot = next(slot for slot, live in ledger.live.items() if live == tid)
        if slot:
            helpers_in.release()
            assert may_end[slot].acquire(timeout=TIMEOUT)
        else:
            for _ in may_end:
                assert helpers_in.acquire(timeout=TIMEOUT)
            assert [nice for _, nice in machine.niced] == [19, 19]
            main_done.set()

    job = Job([Node(0, 3)], control(each, max_chunk_size=1, max_threads=3, machine=machine, monitor=ledger))

    def run_as_main() -> Outcome:
        main.append(threading.get_native_id())
        return job.run()

    run = Background(run_as_main)
    assert main_done.wait(TIMEOUT)
    assert raised.acquire(timeout=TIMEOUT)
    tids = dict(ledger.live)
    assert set(machine.niced[2:]) == {(tids[1], 3)}, "one at a time"
    may_end[1].release()
    assert raised.acquire(timeout=TIMEOUT)
    assert set(machine.niced[2:]) == {(tids[1], 3), (tids[2], 3)}
    may_end[2].release()
    run.result()
    assert main[0] not in {tid for tid, _ in machine.niced}


def test_helpers_are_never_lowered_to_the_callers_nice_value() -> None:
    """A helper at nice 5 stays there while the first thread, at 19, waits for it."""
    machine = FakeMachine(nice=19)
    first_waits = threading.Event()
    helper_in = threading.Event()

    class Clock(FakeClock):
        def wait(self, gate: threading.Lock, seconds: float | None) -> None:
            first_waits.set()
            super().wait(gate, seconds)

    def each(start: int, end: int) -> None:
        if threading.get_native_id() == first:
            assert helper_in.wait(TIMEOUT)
        else:
            helper_in.set()
            assert first_waits.wait(TIMEOUT)

    first = threading.get_native_id()
    Job([Node(0, 2)], control(each, max_chunk_size=1, max_threads=2, nice=5, machine=machine, clock=Clock())).run()
    assert [nice for _, nice in machine.niced] == [5]


def test_who_has_left_is_niced_no_more() -> None:
    """The number of its thread may be another's by now."""
    machine, ledger, together = FakeMachine(), Ledger(), threading.Barrier(2)
    ended = threading.Event()
    ledger.after = lambda: ended.set() if ledger.named("thread_ended") else None
    first = threading.get_native_id()

    def each(start: int, end: int) -> None:
        if start < 2:
            together.wait(TIMEOUT)
            job.set_max_threads(1)
        if threading.get_native_id() == first:
            assert ended.wait(TIMEOUT)
            job.set_nice(7)

    job = Job([Node(0, 4)], control(each, max_chunk_size=1, max_threads=2, machine=machine, monitor=ledger))
    job.run()
    assert [nice for _, nice in machine.niced] == [19]


def test_after_a_failed_end_a_control_changes_nothing() -> None:
    def each(start: int, end: int) -> None:
        raise OSError

    job = Job([Node(0, 10)], control(each, max_chunk_size=1, max_threads=1))
    with pytest.raises(TaskError):
        job.run()
    before = job.outcome()
    for act in (job.cancel, job.pause, job.resume, lambda: job.set_max_threads(4), lambda: job.set_nice(1)):
        act()
    assert job.outcome() == before


def test_a_raised_helper_stays_raised() -> None:
    """Who sets another nice value while the first thread waits does not slow down whom it waits for."""
    raised = threading.Semaphore(0)

    class Machine(FakeMachine):
        def set_nice(self, tid: int, nice: int) -> None:
            super().set_nice(tid, nice)
            if nice == self.own_nice:
                raised.release()

    machine = Machine(nice=3)
    first: list[int] = []
    helper_in, may_end = threading.Event(), threading.Event()

    def each(start: int, end: int) -> None:
        if threading.get_native_id() == first[0]:
            assert helper_in.wait(TIMEOUT)
        else:
            helper_in.set()
            assert may_end.wait(TIMEOUT)

    job = Job([Node(0, 2)], control(each, max_chunk_size=1, max_threads=2, machine=machine))

    def run_as_first() -> Outcome:
        first.append(threading.get_native_id())
        return job.run()

    run = Background(run_as_first)
    assert raised.acquire(timeout=TIMEOUT)
    job.set_nice(15)
    assert raised.acquire(timeout=TIMEOUT)
    may_end.set()
    run.result()
    assert [nice for _, nice in machine.niced] == [19, 3, 15, 3]


def test_the_thread_that_others_have_left_does_not_get_all_at_once() -> None:
    """Else no control would reach it any more."""
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
