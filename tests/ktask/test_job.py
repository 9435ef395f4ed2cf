"""A whole run with real threads: every unit once, errors, interrupts, threads that cannot be had."""

from __future__ import annotations

import _thread
import contextlib
import threading
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktaskfs import ktask
from ktaskfs.ktask import HelperBudget, Job, Node, TaskError
from tests.ktask.fakes import TIMEOUT, FakeClock, FakeMachine, Ledger, control, units_of


class Chunks:
    """A chunk function that keeps which ranges it has finished, and does ``each`` first."""

    def __init__(self, each: Any = lambda start, end: None) -> None:
        self._each = each
        self._lock = threading.Lock()  # guards finished
        self.finished: list[tuple[int, int]] = []

    def __call__(self, start: int, end: int) -> None:
        self._each(start, end)
        with self._lock:
            self.finished.append((start, end))

    @property
    def units(self) -> list[int]:
        return sorted(units_of(self.finished))


class Unlucky(Exception):
    """What the chunk functions of these tests raise."""


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=0, max_size=4),
    threads=st.integers(1, 8),
    least=st.integers(1, 9),
    fixed=st.booleans(),
    nids=st.booleans(),
)
def test_every_unit_is_done_once(sizes: list[int], threads: int, least: int, fixed: bool, nids: bool) -> None:
    nodes = [Node(1000 * index, size, index if nids else -1) for index, size in enumerate(sizes)]
    chunks, ledger = Chunks(), Ledger()
    machine = FakeMachine(nodes={index: frozenset({2 * index, 2 * index + 1}) for index in range(len(sizes))})
    ctl = control(
        chunks, min_chunk_size=least, max_threads=threads, fixed_chunks=fixed, machine=machine, monitor=ledger
    )
    outcome = ktask.run_numa(nodes, ctl)
    assert chunks.units == units_of(nodes)
    assert outcome.units_done == sum(sizes) == sum(share.units for share in outcome.per_thread)
    assert outcome.chunks == len(chunks.finished) == sum(share.chunks for share in outcome.per_thread)
    assert outcome.remaining() == ()
    assert not outcome.cancelled
    assert 1 <= outcome.threads <= threads
    assert ledger.live == {}
    assert len(ledger.done_units()) == sum(sizes)


@pytest.mark.parametrize("nodes", [[], [Node(0, 0)], [Node(0, 0, 1), Node(5, 0, 2)]])
def test_nothing_to_do(nodes: list[Node]) -> None:
    chunks = Chunks()
    outcome = ktask.run_numa(nodes, control(chunks))
    assert chunks.finished == []
    assert (outcome.units_done, outcome.chunks, outcome.remaining()) == (0, 0, ())


@pytest.mark.parametrize(("size", "least"), [(1, 1), (1, 100), (99, 100)])
def test_less_than_one_least_chunk(size: int, least: int) -> None:
    chunks = Chunks()
    outcome = ktask.run(5, size, control(chunks, min_chunk_size=least, max_threads=8))
    assert chunks.finished == [(5, 5 + size)]
    assert outcome.threads == 1


def test_all_threads_take_part_and_the_first_is_the_caller() -> None:
    together = threading.Barrier(4)
    seen: set[int] = set()

    def meet(start: int, end: int) -> None:
        together.wait(TIMEOUT)
        seen.add(threading.get_native_id())

    outcome = ktask.run(0, 4, control(meet, max_chunk_size=1, max_threads=4))
    assert threading.get_native_id() in seen
    assert len(seen) == 4
    assert outcome.threads == 4
    assert [(share.slot, share.units) for share in outcome.per_thread] == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_helpers_are_limited_to_a_share_of_the_cpus() -> None:
    names: list[int] = []
    together = threading.Barrier(5)
    ctl = ktask.Control(
        lambda a, b: together.wait(TIMEOUT),
        min_chunk_size=1,
        max_chunk_size=1,
        max_threads=9,
        machine=FakeMachine(cpus=6),
        thread_start=names.append,
    )
    assert ktask.run(0, 5, ctl).threads == 5, "80 percent of six CPUs, and the caller"
    assert sorted(names) == [1, 2, 3, 4]


def test_tasks_share_a_budget_and_give_it_back() -> None:
    machine = FakeMachine(cpus=10)
    budget = HelperBudget(machine, 30)
    inner: list[int] = []

    def outer(start: int, end: int) -> None:
        if start == 0:
            inner.append(ktask.run(0, 100, control(Chunks(), machine=machine, budget=budget, max_threads=8)).threads)
        gate.wait(TIMEOUT)

    gate = threading.Barrier(4)
    outcome = ktask.run(0, 4, control(outer, max_chunk_size=1, max_threads=8, machine=machine, budget=budget))
    assert outcome.threads == 4
    assert inner == [1], "the outer task has all three helpers, the inner one still runs"
    assert [budget.hire(number) for number in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("bad", [0, 50, 99])
@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_stops_the_handing_out(bad: int, threads: int) -> None:
    def each(start: int, end: int) -> None:
        if start == bad:
            raise Unlucky(start)

    chunks, ledger = Chunks(each), Ledger()
    ctl = control(chunks, max_chunk_size=1, max_threads=threads, monitor=ledger)
    with pytest.raises(TaskError) as caught:
        ktask.run(0, 100, ctl)
    error = caught.value
    assert isinstance(error.error, Unlucky)
    assert error.__cause__ is error.error
    assert error.position == bad
    left = units_of(error.outcome.remaining())
    assert bad in left
    assert sorted(left + chunks.units) == list(range(100))
    assert error.outcome.units_done == len(chunks.units)
    assert not error.outcome.cancelled
    assert len(ledger.named("chunk_failed")) == 1
    assert ledger.done_units() == {(0, unit) for unit in chunks.units}
    if threads == 1:
        assert chunks.units == list(range(bad))


def test_the_first_of_several_errors_wins() -> None:
    started = threading.Barrier(3)
    first_failed = threading.Event()
    ledger = Ledger()
    ledger.after = lambda: first_failed.set() if ledger.failed else None

    def each(start: int, end: int) -> None:
        started.wait(TIMEOUT)
        if start != 1:
            assert first_failed.wait(TIMEOUT)
        raise Unlucky(start)

    with pytest.raises(TaskError) as caught:
        ktask.run(0, 30, control(each, max_chunk_size=1, max_threads=3, monitor=ledger))
    assert caught.value.position == 1
    assert caught.value.error.args == (1,)
    assert caught.value.outcome.units_done == 0
    assert caught.value.outcome.remaining() == (Node(0, 30),), "merged into one"
    assert len(ledger.failed) == 3


def test_the_rest_of_a_failed_task_can_be_run() -> None:
    bad = {3, 17, 18}

    def each(start: int, end: int) -> None:
        if start in bad:
            raise Unlucky(start)

    chunks = Chunks(each)
    left: tuple[Node, ...] = (Node(0, 40),)
    for attempt in range(4):
        try:
            left = ktask.run_numa(left, control(chunks, max_chunk_size=1, max_threads=1)).remaining()
        except TaskError as error:
            assert attempt < 3
            left = error.outcome.remaining()
            bad.discard(error.position)
    assert left == ()
    assert chunks.units == list(range(40))


def test_an_iterator_that_fails_fails_the_task() -> None:
    def advance(position: int, size: int) -> int:
        if position >= 20:
            raise Unlucky("no further")
        return position + size

    chunks = Chunks()
    with pytest.raises(TaskError) as caught:
        ktask.run(0, 100, control(chunks, max_chunk_size=10, max_threads=1, iter_func=advance))
    assert caught.value.position == 20
    assert caught.value.outcome.remaining() == (Node(20, 80),)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_of_the_caller_waits_for_the_helpers_and_passes(interrupt: type[BaseException]) -> None:
    caller = threading.get_native_id()
    both = threading.Barrier(2)
    go_on = threading.Event()
    ledger = Ledger()
    ledger.after = lambda: go_on.set() if ledger.failed else None

    def each(start: int, end: int) -> None:
        both.wait(TIMEOUT)
        if threading.get_native_id() == caller:
            raise interrupt
        assert go_on.wait(TIMEOUT)

    chunks = Chunks(each)
    undone: list[tuple[int, int]] = []
    job = Job(
        [Node(0, 50)],
        control(chunks, max_chunk_size=1, max_threads=2, monitor=ledger, undo_func=lambda a, b: undone.append((a, b))),
    )
    with pytest.raises(interrupt):
        job.run()
    assert ledger.live == {}
    assert len(chunks.finished) == 1, "the helper's chunk was finished, and no other begun"
    assert units_of(undone) == chunks.units
    assert units_of(job.remaining()) == list(range(50))


@pytest.mark.parametrize("granted", [0, 2])
def test_threads_that_cannot_be_had_are_done_without(monkeypatch: pytest.MonkeyPatch, granted: int) -> None:
    start = _thread.start_new_thread
    left = [None] * granted

    def scarce(function: Any, arguments: Any) -> int:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        return start(function, arguments)

    monkeypatch.setattr(_thread, "start_new_thread", scarce)
    together = threading.Barrier(granted + 1)
    machine = FakeMachine()
    budget = HelperBudget(machine, 100)
    ctl = control(lambda a, b: together.wait(TIMEOUT), max_chunk_size=1, max_threads=6, machine=machine, budget=budget)
    outcome = ktask.run(0, 2 * (granted + 1), ctl)
    assert outcome.threads == granted + 1
    assert outcome.units_done == 2 * (granted + 1)
    assert [budget.hire(number) for number in range(65)].count(True) == 64, "what was not used went back"


def test_chunks_are_for_the_threads_that_there_are() -> None:
    """Not for those that were wanted, which the budget did not give."""
    sizes: list[int] = []
    ctl = control(
        lambda start, end: sizes.append(end - start), max_threads=8, budget=HelperBudget(FakeMachine(cpus=1), 100)
    )
    ktask.run(0, 1000, ctl)
    assert sizes[0] == 1000 // 2 >> 2


def test_one_thread_that_gets_no_helpers_does_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(function: Any, arguments: Any) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", none)
    sizes: list[int] = []
    ktask.run(0, 1000, control(lambda start, end: sizes.append(end - start), max_threads=4))
    assert sizes == [1000]


def test_a_monitor_that_raises_at_the_end_of_a_helper_fails_the_task() -> None:
    """It must not raise; but nobody waits for ever for a helper that has ended."""

    class Broken(Ledger):
        def thread_ended(self, slot: int) -> None:
            super().thread_ended(slot)
            if slot:
                raise ZeroDivisionError

    together = threading.Barrier(2)
    with pytest.raises(TaskError) as caught:
        ktask.run(0, 2, control(lambda a, b: together.wait(TIMEOUT), max_chunk_size=1, max_threads=2, monitor=Broken()))
    assert isinstance(caught.value.error, ZeroDivisionError)


def test_a_thread_that_could_not_be_had_can_be_had_later(monkeypatch: pytest.MonkeyPatch) -> None:
    start = _thread.start_new_thread
    together = threading.Barrier(2)

    def never(function: Any, arguments: Any) -> int:
        raise RuntimeError("can't start new thread")

    def each(begin: int, end: int) -> None:
        if begin == 0:
            monkeypatch.setattr(_thread, "start_new_thread", start)
            job.set_max_threads(2)
        else:
            together.wait(TIMEOUT)

    monkeypatch.setattr(_thread, "start_new_thread", never)
    job = Job([Node(0, 3)], control(each, max_chunk_size=1, max_threads=2))
    assert job.run().threads == 2


def test_a_helper_that_starts_too_late_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[Any] = []
    monkeypatch.setattr(_thread, "start_new_thread", lambda function, arguments: late.append((function, arguments)))
    chunks, ledger, machine = Chunks(), Ledger(), FakeMachine()
    ctl = control(chunks, max_threads=3, monitor=ledger, machine=machine, thread_start=lambda slot: late.clear())
    outcome = ktask.run(0, 30, ctl)
    assert outcome.threads == 1
    assert [share.slot for share in outcome.per_thread] == [0]
    calls, niced = list(ledger.calls), list(machine.niced)
    assert len(late) == 2
    for function, arguments in late:
        function(*arguments)
    assert (ledger.calls, machine.niced, len(late)) == (calls, niced, 2)
    assert chunks.units == list(range(30))


def test_the_start_hook_runs_in_each_helper() -> None:
    together = threading.Barrier(3)
    tids: dict[int, int] = {}
    ledger = Ledger()

    def name(slot: int) -> None:
        tids[slot] = threading.get_native_id()
        assert ledger.live[slot] == tids[slot]

    ctl = control(
        lambda a, b: together.wait(TIMEOUT), max_chunk_size=1, max_threads=3, thread_start=name, monitor=ledger
    )
    ktask.run(0, 3, ctl)
    assert sorted(tids) == [1, 2]


def test_a_start_hook_that_fails_fails_the_task() -> None:
    hooked = threading.Event()

    def broken(slot: int) -> None:
        hooked.set()
        raise Unlucky(slot)

    # The first thread's first chunk waits for the helper, so that there is one.
    ctl = control(lambda a, b: hooked.wait(TIMEOUT), max_chunk_size=1, max_threads=2, thread_start=broken)
    with pytest.raises(TaskError) as caught:
        ktask.run(0, 2, ctl)
    assert caught.value.error.args == (1,)


def test_busy_time_is_the_time_in_the_chunk_function() -> None:
    clock, ledger = FakeClock(), Ledger()

    def each(start: int, end: int) -> None:
        clock.now_ns += 250_000_000

    outcome = ktask.run(0, 8, control(each, max_chunk_size=1, max_threads=1, clock=clock, monitor=ledger))
    assert [share.busy_seconds for share in outcome.per_thread] == [2.0]
    assert outcome.seconds == 2.0


def test_a_job_runs_once() -> None:
    job = Job([Node(0, 3)], control(Chunks()))
    job.run()
    with pytest.raises(RuntimeError, match="once"):
        job.run()


def test_memory_does_not_grow_with_the_number_of_chunks() -> None:
    sizes: list[int] = []

    def each(start: int, end: int) -> None:
        if start in (1000, 20_000):
            sizes.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        ktask.run(0, 20_001, control(each, max_chunk_size=1, max_threads=1))
    finally:
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 10_000, "19,000 chunks later"


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 60), threads=st.integers(1, 5), bad=st.sets(st.integers(0, 59), max_size=3))
def test_no_observer_ever_believes_too_much(size: int, threads: int, bad: set[int]) -> None:
    """Whenever the process might be killed, what a page fed by the monitor says is done has been done."""
    ledger = Ledger()
    finished: set[tuple[int, int]] = set()

    def each(start: int, end: int) -> None:
        if not bad.isdisjoint(range(start, end)):
            raise Unlucky(start)
        finished.update((0, unit) for unit in range(start, end))

    def check() -> None:
        assert ledger.done_units() <= finished

    ledger.after = check
    job = Job([Node(0, size)], control(each, max_chunk_size=2, max_threads=threads, monitor=ledger))
    expected = pytest.raises(TaskError) if bad & set(range(size)) else contextlib.nullcontext()
    with expected as caught:
        job.run()
    if caught is not None:
        assert isinstance(caught.value.error, Unlucky)
    assert ledger.done_units() == finished
    assert sorted(units_of(job.remaining())) == sorted(set(range(size)) - {unit for _, unit in finished})


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("call", range(1, 32))
def test_an_interrupt_anywhere_in_the_scheduler_loses_nothing(call: int, times: int) -> None:
    """^C in the first thread at each of its steps: what counts as done has been done, and nobody is left behind."""
    main = threading.get_native_id()
    ledger, chunks = Ledger(), Chunks()
    calls = 0

    def interrupt() -> None:
        nonlocal calls
        if threading.get_native_id() == main:
            calls += 1
            if call <= calls < call + times:
                raise KeyboardInterrupt

    ledger.after = interrupt
    job = Job([Node(0, 12)], control(chunks, max_chunk_size=1, max_threads=2, monitor=ledger))
    with contextlib.suppress(KeyboardInterrupt):
        job.run()
    believed = set(range(12)) - set(units_of(job.remaining()))
    assert believed <= set(chunks.units)
    assert ledger.done_units() <= {(0, unit) for unit in chunks.units}
    assert len(chunks.units) == len(set(chunks.units))
    if call > 1:  # the first step is to take part; before that there is nobody to end
        assert ledger.live == {}


class Patience(FakeClock):
    """No time passes, and whoever waits does so until something happens."""

    def wait(self, gate: threading.Lock, seconds: float | None) -> None:
        super().wait(gate, None)


def test_threads_begin_before_the_first_one_takes_a_chunk() -> None:
    ledger, first, first_works = Ledger(), threading.get_native_id(), threading.Event()

    def each(start: int, end: int) -> None:
        if threading.get_native_id() == first:
            first_works.set()
        assert first_works.wait(TIMEOUT)

    ctl = control(each, max_chunk_size=1, max_threads=8, clock=Patience(), monitor=ledger)
    assert ktask.run(0, 100, ctl).threads == 8
    begun = [index for index, call in enumerate(ledger.calls) if call[0] == "thread_started"]
    own = [index for index, call in enumerate(ledger.calls) if call[:2] == ("chunk_assigned", 0)]
    assert len(begun) == 8
    assert all(index > begun[-1] for index in own)


def test_a_helper_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "_start", lambda self, workers: None)
    clock = FakeClock()
    outcome = ktask.run(0, 10, control(lambda start, end: None, max_threads=4, clock=clock))
    assert (outcome.units_done, outcome.threads) == (10, 1)
    assert 10e6 <= clock.now_ns < 11e6


class Link:
    """An element of a list, as a position: too long to be shown."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        raise RecursionError


def test_a_position_that_cannot_be_shown() -> None:
    def each(start: Link, end: Link) -> None:
        raise Unlucky

    def undo(start: Link, end: Link) -> None:
        raise Unlucky

    ctl = control(each, iter_func=lambda position, size: Link(position.number + size), undo_func=undo)
    with pytest.raises(TaskError, match=r"chunk at <Link>") as caught:
        ktask.run(Link(7), 3, ctl)
    assert caught.value.position.number == 7


def fail() -> None:
    """For another process."""

    def each(start: int, end: int) -> None:
        raise ValueError(start)

    ktask.run(0, 3, control(each, max_threads=1))


def test_a_failure_reaches_another_process() -> None:
    with ProcessPoolExecutor(1) as pool, pytest.raises(TaskError) as caught:
        pool.submit(fail).result(TIMEOUT)
    assert isinstance(caught.value.error, ValueError)
    assert (caught.value.position, caught.value.outcome.remaining()) == (0, (Node(0, 3),))


def test_the_cpus_are_those_of_the_thread_that_runs() -> None:
    machine = FakeMachine(cpus=8)
    job = Job([Node(0, 8)], control(lambda start, end: None, max_chunk_size=1, max_threads=8, machine=machine))
    machine.count = 1
    assert job.run().threads == 1


@pytest.mark.parametrize("nodes", [2, 100])
def test_the_work_of_many_nodes(nodes: int) -> None:
    """Each thread does what is left of its own node first, then what is left anywhere."""
    order: list[int] = []
    ranges = [Node(10 * index, 2, index % 2) for index in range(nodes)]
    ctl = control(lambda start, end: order.append(start), max_chunk_size=1, max_threads=1, machine=FakeMachine())
    outcome = ktask.run_numa(ranges, ctl)
    assert outcome.units_done == 2 * nodes
    own = [10 * index + unit for index in range(0, nodes, 2) for unit in range(2)]
    assert order[:nodes] == own
    assert sorted(order[nodes:]) == [10 * index + unit for index in range(1, nodes, 2) for unit in range(2)]
