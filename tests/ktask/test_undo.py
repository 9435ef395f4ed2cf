"""The undo of finished work after a failure or a cancel."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktaskfs import ktask
from ktaskfs.ktask import Job, Node, Placement, TaskError
from tests.ktask.fakes import TIMEOUT, FakeMachine, Ledger, control, units_of


class Unlucky(Exception):
    """The exception that chunk functions of these tests raise."""


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    threads=st.integers(1, 6),
    most=st.integers(1, 5),
    bad=st.sets(st.integers(0, 119), min_size=1, max_size=4),
)
def test_exactly_the_finished_units_are_undone(sizes: list[int], threads: int, most: int, bad: set[int]) -> None:
    nodes = [Node(100 * index, size) for index, size in enumerate(sizes)]
    lock = threading.Lock()
    finished: set[int] = set()
    undone: list[tuple[int, int]] = []

    def each(start: int, end: int) -> None:
        if not bad.isdisjoint(range(start, end)):
            raise Unlucky
        with lock:
            finished.update(range(start, end))

    job = Job(
        nodes,
        control(each, max_chunk_size=most, max_threads=threads, undo_func=lambda a, b: undone.append((a, b))),
    )
    try:
        outcome = job.run()
    except TaskError as error:
        outcome = error.outcome
        assert units_of(undone) == sorted(finished), "in order, each once"
        assert all(one[1] != two[0] for one, two in itertools.pairwise(undone)), "merged where they touch"
        assert outcome.units_undone == len(finished)
        assert outcome.units_done == 0
        assert units_of(outcome.remaining()) == units_of(nodes)
    else:
        assert undone == []
        assert outcome.units_undone == 0
        assert outcome.units_done == sum(sizes)
    assert job.outcome() == outcome


def test_failed_ranges_are_left_out_and_the_rest_merged() -> None:
    """Three threads fail at chunks 3, 5 and 6 when all earlier chunks are done."""
    lock = threading.Lock()
    done = 0
    others_done = threading.Event()
    failing = threading.Barrier(3)

    def each(start: int, end: int) -> None:
        nonlocal done
        if start in (3, 5, 6):
            assert others_done.wait(TIMEOUT)
            failing.wait(TIMEOUT)
            raise Unlucky(start)
        with lock:
            done += 1
            if done == 7:
                others_done.set()

    undone: list[tuple[int, int]] = []
    ctl = control(each, max_chunk_size=1, max_threads=4, undo_func=lambda a, b: undone.append((a, b)))
    with pytest.raises(TaskError):
        ktask.run(0, 10, ctl)
    assert undone == [(0, 3), (4, 5), (7, 10)]


def test_failed_chunks_are_undone_too_where_the_client_can_each_by_itself() -> None:
    """Two threads fail at chunks 3 and 4 at the same time, when all earlier chunks are done."""
    failing = threading.Barrier(2)
    undone: list[tuple[int, int]] = []
    ledger = Ledger()

    def each(start: int, end: int) -> None:
        if start >= 3:
            failing.wait(TIMEOUT)
            raise Unlucky(start)

    ctl = control(
        each,
        max_chunk_size=1,
        max_threads=2,
        undo_func=lambda a, b: undone.append((a, b)),
        undo_failed=True,
        monitor=ledger,
    )
    with pytest.raises(TaskError) as caught:
        ktask.run(0, 5, ctl)
    assert undone == [(0, 3), (3, 4), (4, 5)]
    outcome = caught.value.outcome
    assert (outcome.units_done, outcome.units_undone) == (0, 3), "a failed chunk is neither done nor undone"
    assert outcome.remaining() == (Node(0, 5),)
    assert ledger.done_units() == set()


def test_chunks_that_were_not_handed_out_are_not_undone() -> None:
    undone: list[tuple[int, int]] = []

    def each(start: int, end: int) -> None:
        raise Unlucky(start)

    ctl = control(each, max_chunk_size=1, max_threads=1, undo_func=lambda a, b: undone.append((a, b)), undo_failed=True)
    with pytest.raises(TaskError):
        ktask.run(0, 10, ctl)
    assert undone == [(0, 1)]


def test_a_failed_chunk_whose_undo_fails_is_told_of_in_a_note() -> None:
    def each(start: int, end: int) -> None:
        if start == 2:
            raise Unlucky(start)

    def undo(start: int, end: int) -> None:
        if start == 2:
            raise OSError("cannot take it back")

    ctl = control(each, max_chunk_size=1, max_threads=1, undo_func=undo, undo_failed=True)
    with pytest.raises(TaskError) as caught:
        ktask.run(0, 10, ctl)
    assert isinstance(caught.value.error, Unlucky)
    assert caught.value.error.__notes__ == ["undo failed at 2: OSError('cannot take it back')"]


def test_undo_failed_needs_an_undo_func_and_a_flag() -> None:
    with pytest.raises(ValueError, match="undo_failed needs an undo_func"):
        control(lambda start, end: None, undo_failed=True)
    with pytest.raises(TypeError, match="undo_failed is 1"):
        control(lambda start, end: None, undo_func=lambda start, end: None, undo_failed=1)


@pytest.mark.parametrize("when", [0, 4])
def test_cancel_undoes_too(when: int) -> None:
    undone: list[tuple[int, int]] = []
    ledger = Ledger()

    def each(start: int, end: int) -> None:
        if start == when:
            job.cancel()

    ctl = control(each, max_chunk_size=1, max_threads=1, undo_func=lambda a, b: undone.append((a, b)), monitor=ledger)
    job = Job([Node(0, 10)], ctl)
    outcome = job.run()
    assert outcome.cancelled
    assert undone == [(0, when + 1)], "the chunk that ran was finished first"
    assert outcome.remaining() == (Node(0, 10),)
    assert ledger.calls[-2:] == [("thread_ended", 0), ("undo_started",)]
    assert ledger.done_units() == set()


@pytest.mark.parametrize("first", [True, False])
def test_a_cancel_without_undo_keeps_what_is_done(first: bool) -> None:
    """Of two cancels, the first one decides."""
    undone = []

    def each(start: int, end: int) -> None:
        if start == 3:
            job.cancel(undo=first)
            job.cancel(undo=not first)

    ctl = control(each, max_chunk_size=1, max_threads=1, undo_func=lambda a, b: undone.append((a, b)))
    job = Job([Node(0, 10)], ctl)
    outcome = job.run()
    assert outcome.cancelled
    assert undone == ([(0, 4)] if first else [])
    assert outcome.remaining() == (Node(0, 10) if first else Node(4, 6),)


def test_success_undoes_nothing_even_if_cancelled_at_the_last_chunk() -> None:
    def each(start: int, end: int) -> None:
        if start == 9:
            job.cancel()

    def undo(start: int, end: int) -> None:
        raise AssertionError("all was done")

    job = Job([Node(0, 10)], control(each, max_chunk_size=1, max_threads=1, undo_func=undo))
    outcome = job.run()
    assert not outcome.cancelled
    assert outcome.units_done == 10


def test_an_undo_that_fails_is_told_of_and_the_others_go_on() -> None:
    undone: list[tuple[int, int]] = []

    def each(start: Any, end: Any) -> None:
        if start in (2, 20):
            raise Unlucky(start)

    def undo(start: int, end: int) -> None:
        undone.append((start, end))
        if start == 0:
            raise OSError("cannot take it back")

    ctl = control(each, max_chunk_size=1, max_threads=1, undo_func=undo)
    with pytest.raises(TaskError) as caught:
        ktask.run_numa([Node(10, 3), Node(0, 5)], ctl)
    assert undone == [(10, 13), (0, 2)]
    assert isinstance(caught.value.error, Unlucky)
    assert "cannot take it back" in caught.value.error.__notes__[0]

    undone.clear()
    job = Job([Node(0, 5)], control(lambda a, b: job.cancel(), max_chunk_size=1, max_threads=1, undo_func=undo))
    with pytest.raises(TaskError) as caught:
        job.run()
    assert isinstance(caught.value.error, OSError)
    assert caught.value.position == 0
    assert caught.value.outcome.cancelled


def test_an_exception_that_takes_no_note_is_told_of_all_the_same() -> None:
    @dataclass(frozen=True)
    class Frozen(Exception):
        start: int

    def each(start: int, end: int) -> None:
        if start == 1:
            raise Frozen(start)

    def undo(start: int, end: int) -> None:
        raise OSError

    with pytest.raises(TaskError) as caught:
        ktask.run(0, 2, control(each, max_chunk_size=1, max_threads=1, undo_func=undo))
    assert caught.value.error == Frozen(1)


def test_of_several_undo_failures_the_first_counts() -> None:
    def each(start: int, end: int) -> None:
        if start == 0:
            job.cancel()

    def undo(start: int, end: int) -> None:
        raise OSError(start)

    job = Job([Node(10, 1), Node(0, 2)], control(each, max_chunk_size=1, max_threads=1, undo_func=undo))
    with pytest.raises(TaskError) as caught:
        job.run()
    assert (caught.value.position, caught.value.error.args) == (10, (10,))


def test_an_empty_range_is_no_part_of_what_is_left() -> None:
    job = Job(
        [Node(0, 0), Node(10, 2)],
        control(lambda start, end: job.cancel(), max_chunk_size=1, max_threads=1, undo_func=lambda start, end: None),
    )
    assert job.run().remaining() == (Node(10, 2),)


def test_the_caller_is_put_back_before_the_undo() -> None:
    machine = FakeMachine(cpus=4, nodes={0: frozenset({0, 1})})
    placed: list[Placement] = []
    job = Job(
        [Node(0, 2, 0)],
        control(
            lambda start, end: job.cancel(),
            max_chunk_size=1,
            max_threads=1,
            machine=machine,
            undo_func=lambda start, end: placed.append(machine.placed[-1][1]),
        ),
    )
    job.run()
    assert placed == [machine.placement()]
