"""The number of threads is found while the task runs: with real threads, and chunks that only so many do at a time."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from ktaskfs.ktask import Control, HelperBudget, Job, Node, TaskError
from tests.ktask.fakes import TIMEOUT, FakeMachine, Ledger, Unlucky, control, units_of

if TYPE_CHECKING:
    from collections.abc import Callable


class Memory:
    """Serves ``most`` chunks at a time, on each node; the others wait."""

    def __init__(self, most: int, seconds: float = 0.001, node_units: int = 1 << 40) -> None:
        self._most = most
        self._seconds = seconds
        self._node_units = node_units
        self._lock = threading.Lock()
        self._serves: dict[int, threading.Semaphore] = {}
        self.done: set[int] = set()

    def __call__(self, start: int, end: int) -> None:
        with self._lock:
            serve = self._serves.setdefault(start // self._node_units, threading.Semaphore(self._most))
        with serve:
            time.sleep(self._seconds)
        with self._lock:
            assert self.done.isdisjoint(range(start, end))
            self.done.update(range(start, end))


def found(thread_func: Callable[[Any, Any], object], cpus: int, **fields: Any) -> Control:
    """The number of threads is to be found, among so many CPUs; chunks have one unit."""
    return control(thread_func, threads="found", max_chunk_size=1, machine=FakeMachine(cpus=cpus), **fields)


def test_more_threads_take_part_where_they_help() -> None:
    memory, ledger = Memory(16), Ledger()
    outcome = Job([Node(0, 4000)], found(memory, 16, monitor=ledger)).run()
    assert memory.done == set(range(4000))
    assert 4 < outcome.threads <= 16
    assert ledger.live == {}
    assert max(threads for _, threads, _ in ledger.named("threads_found")) == 16


def test_threads_that_bring_nothing_are_given_back() -> None:
    memory, ledger = Memory(1), Ledger()
    outcome = Job([Node(0, 2000)], found(memory, 16, monitor=ledger)).run()
    assert memory.done == set(range(2000))
    assert outcome.threads > ledger.named("threads_found")[-1][1]
    assert len(ledger.named("thread_ended")) == len(ledger.named("thread_started"))


def test_each_numa_node_has_its_own_number() -> None:
    size = 3000
    memory, ledger = Memory(8, node_units=size), Ledger()
    nodes = [Node(0, size, 0), Node(size, size, 1)]
    job = Job(nodes, found(memory, 32, monitor=ledger))
    outcome = job.run()
    assert memory.done == set(range(2 * size))
    assert outcome.threads > 4
    assert {nid for nid, _, _ in ledger.named("threads_found")} == {0, 1}
    assert ledger.live == {}


@pytest.mark.parametrize("size", [1, 3, 20, 40])
def test_a_short_task_is_as_with_the_arithmetic(size: int) -> None:
    threads = [
        Job([Node(0, size)], control(Memory(64), threads=how, machine=FakeMachine(), max_chunk_size=1)).run().threads
        for how in ("found", "fixed")
    ]
    assert max(threads) <= min(size, 4)


def test_the_cap_holds() -> None:
    for most in (1, 2, 7):
        memory = Memory(64)
        outcome = Job([Node(0, 1500)], found(memory, 64, max_threads=most)).run()
        assert outcome.threads <= most
        assert memory.done == set(range(1500))


def test_a_cap_that_is_lifted_gives_threads_at_once() -> None:
    """Those that the arithmetic gives, before anything was measured."""
    meet = threading.Barrier(2)

    def each(start: int, end: int) -> None:
        if start == 0:
            job.set_max_threads(4)
        elif start < 3:
            meet.wait(TIMEOUT)

    job = Job([Node(0, 8)], found(each, 4, max_threads=1))
    assert job.run().threads > 1


def test_the_budget_holds() -> None:
    memory, ledger, machine = Memory(64), Ledger(), FakeMachine(cpus=10)
    budget = HelperBudget(machine, 50)
    outcome = Job([Node(0, 2500)], found(memory, 64, budget=budget, monitor=ledger)).run()
    assert 4 < outcome.threads <= 6, "five helpers and the caller"
    assert [budget.hire(number) for number in range(6)] == [True] * 5 + [False], "all helpers are given back"


def test_a_lower_cap_while_it_runs() -> None:
    memory, ledger, jobs = Memory(64), Ledger(), list[Job]()
    lowered = threading.Event()

    def each(start: int, end: int) -> None:
        memory(start, end)
        if start == 1500:
            jobs[0].set_max_threads(2)
            lowered.set()

    jobs.append(Job([Node(0, 4000)], found(each, 64, monitor=ledger)))
    jobs[0].run()
    assert lowered.is_set()
    assert memory.done == set(range(4000))
    last = {call[1] for call in ledger.calls[-200:] if call[0] == "chunk_assigned"}
    assert len(last) <= 2


def test_a_failure_while_more_are_tried() -> None:
    memory, ledger = Memory(64), Ledger()

    def each(start: int, end: int) -> None:
        memory(start, end)
        if start == 700:
            raise Unlucky

    undone: list[tuple[int, int]] = []
    ctl = found(each, 64, monitor=ledger, undo_func=lambda start, end: undone.append((start, end)))
    with pytest.raises(TaskError):
        Job([Node(0, 4000)], ctl).run()
    assert ledger.live == {}
    assert set(units_of(undone)) == memory.done - {700}


def test_threads_is_one_of_two_words() -> None:
    with pytest.raises(ValueError, match="threads is 'many'"):
        control(print, threads="many")
