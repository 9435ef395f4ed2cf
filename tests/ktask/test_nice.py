"""The nice value of helpers: set, changed, and raised while the first thread waits for them."""

from __future__ import annotations

import threading

from ktaskfs.ktask import Job, Node, Outcome
from tests.ktask.fakes import TIMEOUT, Background, FakeClock, FakeMachine, Gate, Ledger, control


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
        slot = next(slot for slot, live in dict(ledger.live).items() if live == tid)
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
    """The system may have given its thread number to another thread."""
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


def test_a_raised_helper_stays_raised() -> None:
    """A new nice value, set while the first thread waits, does not slow down the helper that it waits for."""
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
