"""A rate holds threads back. One of them keeps the time, and passes this duty on when it leaves."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import pytest

from ktaskfs.ktask import Job, Node, TaskError
from ktaskfs.ktask.clock import SystemClock
from tests.ktask.fakes import TIMEOUT, Background, FakeClock, Ledger, control, units_of

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND = 10**9


class SharedTime(FakeClock):
    """A clock that advances only when no thread can continue: to the earliest moment that a thread waits for."""

    def __init__(self, ledger: Ledger, threads: int = 0) -> None:
        super().__init__()
        self._ledger = ledger
        self._threads = threads
        self._lock = threading.Lock()  # guards both below
        self._waiting: dict[int, tuple[threading.Lock, int | None]] = {}
        self.keepers = 0
        """The largest number of threads that waited for a moment at the same time, after all ``threads`` had begun."""

    def wait(self, gate: threading.Lock, seconds: float | None) -> None:
        with self.waiting(gate, None if seconds is None else self.now_ns + int(seconds * SECOND) + 1):
            assert gate.acquire(timeout=TIMEOUT), "nobody woke a thread that waits"

    @contextlib.contextmanager
    def waiting(self, gate: threading.Lock, moment: int | None = None) -> Iterator[None]:
        """The calling thread can continue only when ``gate`` opens, or at ``moment`` if it is given."""
        me = threading.get_native_id()
        with self._lock:
            self._waiting[me] = gate, moment
            moments = [(moment, gate) for gate, moment in self._waiting.values() if moment is not None]
            if len(self._ledger.named("thread_started")) == self._threads:
                # A thread whose gate is open goes on, though it may not have run since.
                self.keepers = max(self.keepers, sum(gate.locked() for _, gate in moments))
            parked = all(each.locked() for each, _ in self._waiting.values())
            if parked and len(self._waiting) >= len(self._ledger.live) and moments:
                moment, first = min(moments, key=lambda each: each[0])
                self.now_ns = max(self.now_ns, moment)
                first.release()
        yield
        with self._lock:
            self._waiting.pop(me, None)

    def go_on(self, gate: threading.Lock) -> None:
        """All threads that wait for ``gate`` can continue, perhaps after a delay."""
        with self._lock:
            for thread in [thread for thread, (each, _) in self._waiting.items() if each is gate]:
                del self._waiting[thread]


def test_a_wait_of_many_years_is_no_error() -> None:
    gate = threading.Lock()
    SystemClock().wait(gate, 1e300)
    assert gate.locked()


def test_one_keeps_the_time_and_hands_it_on() -> None:
    """Each round of chunks needs all threads, so each of them must be woken in its turn."""
    ledger = Ledger()
    clock = SharedTime(ledger, 4)
    shut = threading.Lock()
    shut.acquire()
    together = threading.Barrier(4, lambda: clock.go_on(shut))

    def each(start: int, end: int) -> None:
        with clock.waiting(shut):
            together.wait(TIMEOUT)

    ctl = control(
        each,
        max_chunk_size=1,
        max_threads=4,
        rate=100.0,
        clock=clock,
        monitor=ledger,
    )
    assert Job([Node(0, 16)], ctl).run().units_done == 16
    assert clock.keepers == 1
    assert 0.1 <= clock.now_ns / SECOND <= 0.2


def test_a_keeper_that_leaves_hands_it_on() -> None:
    """The rate holds both helpers back, and one keeps the time. Then both are told to leave."""
    ledger = Ledger()
    first = threading.get_native_id()
    own: list[int] = []

    def each(start: int, end: int) -> None:
        if threading.get_native_id() == first:
            own.append(start)
            if len(own) == 1:
                for _ in range(2):
                    assert ledger.waiting.acquire(timeout=TIMEOUT)
                job.set_max_threads(1)

    ctl = control(each, max_chunk_size=1, max_threads=3, rate=20.0, clock=SharedTime(ledger), monitor=ledger)
    job = Job([Node(0, 20)], ctl)
    outcome = job.run()
    assert outcome.units_done == 20
    assert len(own) > 10, "the first thread did what the others had left"


def test_a_rate_holds_from_the_next_chunk_on() -> None:
    clock = FakeClock()
    began: list[float] = []

    def each(start: int, end: int) -> None:
        began.append(clock.now_ns / SECOND)
        if start == 4:
            job.set_rate(10.0)

    job = Job([Node(0, 8)], control(each, max_chunk_size=1, max_threads=1, clock=clock))
    job.run()
    assert began[:5] == [0.0] * 5
    assert began[5:] == pytest.approx([0.0, 0.1, 0.2])


def test_who_is_held_back_hears_of_an_error_at_once() -> None:
    ledger = Ledger()
    clock = SharedTime(ledger)

    def each(start: int, end: int) -> None:
        for _ in range(2):
            assert ledger.waiting.acquire(timeout=TIMEOUT)
        raise ValueError

    ctl = control(each, max_chunk_size=1, max_threads=3, rate=1e-3, clock=clock, monitor=ledger)
    with pytest.raises(TaskError):
        Job([Node(0, 20)], ctl).run()
    assert clock.now_ns < SECOND, "not when its time had come"


def test_a_rate_makes_no_part_of_a_least_chunk() -> None:
    sizes: list[int] = []
    ctl = control(
        lambda start, end: sizes.append(end - start),
        min_chunk_size=7,
        align=8,
        max_threads=1,
        rate=100.0,
        clock=FakeClock(),
    )
    Job([Node(0, 96)], ctl).run()
    assert sizes == [24] * 4


def test_the_rate_is_kept_over_all_threads() -> None:
    clock, ledger = FakeClock(), Ledger()
    job = Job(
        [Node(0, 1000)],
        control(lambda a, b: None, max_chunk_size=10, max_threads=4, rate=100, clock=clock, monitor=ledger),
    )
    outcome = job.run()
    # The first chunk is free, the last one is not waited for.
    assert outcome.seconds == pytest.approx(990 / 100, rel=0.02)
    assert {why for _, why in ledger.named("thread_waits")} == {"throttled"}


def test_a_low_rate_makes_small_chunks() -> None:
    seen: list[int] = []
    ctl = control(lambda a, b: seen.append(b - a), min_chunk_size=5, max_threads=1, rate=100, clock=FakeClock())
    Job([Node(0, 100)], ctl).run()
    assert seen == [25] * 4


def test_lifting_the_rate_wakes_a_throttled_thread() -> None:
    ledger = Ledger()
    job = Job([Node(0, 4)], control(lambda a, b: None, max_chunk_size=1, max_threads=1, monitor=ledger))
    job.set_rate(1e-9)
    run = Background(job.run)
    assert ledger.waiting.acquire(timeout=TIMEOUT)
    job.set_rate(None)
    assert run.result().units_done == 4
    assert ledger.named("thread_waits") == [(0, "throttled")]


def test_a_throttled_task_can_be_cancelled() -> None:
    ledger = Ledger()
    job = Job([Node(0, 4)], control(lambda a, b: None, max_chunk_size=1, max_threads=1, rate=1e-9, monitor=ledger))
    run = Background(job.run)
    assert ledger.waiting.acquire(timeout=TIMEOUT)
    job.cancel()
    assert units_of(run.result().remaining()) == [1, 2, 3]
