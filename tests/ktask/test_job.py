"""A whole run with real threads: every unit once, errors, interrupts, and the monitor's knowledge at any time."""

from __future__ import annotations

import contextlib
import gc
import threading
import tracemalloc
import weakref
from concurrent.futures import ProcessPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktaskfs import ktask
from ktaskfs.ktask import Job, Node, TaskError
from tests.ktask.fakes import TIMEOUT, Chunks, FakeClock, FakeMachine, Ledger, Unlucky, control, units_of


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


@pytest.mark.parametrize("failing", ["chunk", "undo"])
@pytest.mark.parametrize("error", [Unlucky, KeyboardInterrupt])
def test_what_a_failed_run_held_goes_with_its_exception(failing: str, error: type[BaseException]) -> None:
    class Held:
        used = False

    def run_once() -> weakref.ref[Held]:
        held = Held()

        def raise_error(start: int, end: int) -> None:
            held.used = True
            raise error

        jobs: list[Job] = []
        each, undo = (
            (raise_error, None) if failing == "chunk" else (lambda start, end: jobs.pop().cancel(), raise_error)
        )
        jobs.append(Job([Node(0, 10)], control(each, max_chunk_size=1, max_threads=1, undo_func=undo)))
        with contextlib.suppress(TaskError, KeyboardInterrupt):
            jobs[0].run()
        jobs.clear()
        assert held.used
        return weakref.ref(held)

    gc.disable()
    try:
        assert run_once()() is None
    finally:
        gc.enable()


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 60), threads=st.integers(1, 5), bad=st.sets(st.integers(0, 59), max_size=3))
def test_no_observer_ever_believes_too_much(size: int, threads: int, bad: set[int]) -> None:
    """At any moment the process may be killed. All units that a page from the monitor shows as done are done."""
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
    """^C comes at each step of the first thread. Units that count as done are done, and no thread stays behind."""
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


class Link:
    """An element of a list, as a position. Its text is too long to show."""

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
    """Runs a task that fails; another process calls it."""

    def each(start: int, end: int) -> None:
        raise ValueError(start)

    ktask.run(0, 3, control(each, max_threads=1))


def test_a_failure_reaches_another_process() -> None:
    with ProcessPoolExecutor(1) as pool, pytest.raises(TaskError) as caught:
        pool.submit(fail).result(TIMEOUT)
    assert isinstance(caught.value.error, ValueError)
    assert (caught.value.position, caught.value.outcome.remaining()) == (0, (Node(0, 3),))


@pytest.mark.parametrize("nodes", [2, 100])
def test_the_work_of_many_nodes(nodes: int) -> None:
    """Each thread first does the rest of its own node, then the rest of any node."""
    order: list[int] = []
    ranges = [Node(10 * index, 2, index % 2) for index in range(nodes)]
    ctl = control(lambda start, end: order.append(start), max_chunk_size=1, max_threads=1, machine=FakeMachine())
    outcome = ktask.run_numa(ranges, ctl)
    assert outcome.units_done == 2 * nodes
    own = [10 * index + unit for index in range(0, nodes, 2) for unit in range(2)]
    assert order[:nodes] == own
    assert sorted(order[nodes:]) == [10 * index + unit for index in range(1, nodes, 2) for unit in range(2)]
