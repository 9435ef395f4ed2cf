"""The search for the number of threads in a running task, with real threads and a limit of chunks at a time."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from ktaskfs.ktask import Control, HelperBudget, Job, Monitor, Node, TaskError
from ktaskfs.ktask.task_thread import TaskThread
from tests.ktask.fakes import TIMEOUT, Background, FakeMachine, Ledger, Unlucky, control, units_of
from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Callable


ENOUGH = 1_000_000
"""Units of a task that is cancelled when the test has seen enough. It never does all of them."""


class Turns:
    """A semaphore that serves threads in the order of their calls, as memory does: none starves on a busy machine."""

    def __init__(self, most: int) -> None:
        self._lock = threading.Lock()  # guards both fields below
        self._free = most
        self._waiting = deque[threading.Lock]()

    def __enter__(self) -> None:
        mine = threading.Lock()
        with self._lock:
            if self._free:
                self._free -= 1
                return
            mine.acquire()
            self._waiting.append(mine)
        assert mine.acquire(timeout=TIMEOUT)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


class Memory:
    """A chunk function: each node serves ``most`` chunks at a time, and the others wait."""

    def __init__(self, most: int, seconds: float = 0.001, node_units: int = 1 << 40) -> None:
        self._most = most
        self._seconds = seconds
        self._node_units = node_units
        self._lock = threading.Lock()
        self._serves: dict[int, Turns] = {}
        self.done: set[int] = set()

    def __call__(self, start: int, end: int) -> None:
        with self._lock:
            serve = self._serves.setdefault(start // self._node_units, Turns(self._most))
        with serve:
            time.sleep(self._seconds)
        with self._lock:
            assert self.done.isdisjoint(range(start, end))
            self.done.update(range(start, end))


def found(thread_func: Callable[[Any, Any], object], cpus: int, **fields: Any) -> Control:
    """Returns a Control that searches for the number of threads on ``cpus`` CPUs. Each chunk has one unit."""
    return control(thread_func, threads="found", max_chunk_size=1, machine=FakeMachine(cpus=cpus), **fields)


class Until(Ledger):
    """Sets ``met`` when ``shown`` accepts the numbers of threads found so far, by NUMA node."""

    def __init__(self, shown: Callable[[dict[int, int]], bool]) -> None:
        super().__init__()
        self.met = threading.Event()
        self._shown = shown
        self._found: dict[int, int] = {}

    def threads_found(self, nid: int, threads: int, why: str) -> None:
        super().threads_found(nid, threads, why)
        self._found[nid] = threads
        if self._shown(self._found):
            self.met.set()


def run_until(shown: Callable[[dict[int, int]], bool], memory: Memory, cpus: int, nodes: list[Node]) -> Until:
    """Run the task until ``shown`` accepts the numbers of threads; fail if the task is done before."""
    ledger = Until(shown)

    def each(start: int, end: int) -> None:
        memory(start, end)
        if ledger.met.is_set():
            job.cancel()

    job = Job(nodes, found(each, cpus, monitor=ledger))
    outcome = job.run()
    assert outcome.cancelled
    assert outcome.units_done == len(memory.done)
    assert ledger.live == {}
    return ledger


def test_more_threads_take_part_where_they_help() -> None:
    run_until(lambda threads: threads == {-1: 16}, Memory(16), 16, [Node(0, ENOUGH)])


def test_threads_that_bring_nothing_are_given_back() -> None:
    ledger = run_until(lambda threads: threads == {-1: 1}, Memory(1), 16, [Node(0, ENOUGH)])
    assert len(ledger.named("thread_ended")) == len(ledger.named("thread_started"))
    assert len(ledger.named("thread_started")) > 1


def test_each_numa_node_has_its_own_number() -> None:
    nodes = [Node(0, ENOUGH, 0), Node(ENOUGH, ENOUGH, 1)]
    run_until(lambda threads: len(threads) == 2 and sum(threads.values()) > 4, Memory(8, node_units=ENOUGH), 32, nodes)


@pytest.mark.parametrize("size", [1, 3, 20, 40])
def test_a_short_task_is_as_with_the_arithmetic(size: int) -> None:
    threads = [
        Job([Node(0, size)], control(Memory(64), threads=how, machine=FakeMachine(), max_chunk_size=1)).run().threads
        for how in ("found", "fixed")
    ]
    assert max(threads) <= min(size, 4)


def test_each_numa_node_begins_with_the_arithmetics_number() -> None:
    """All chunks run at the same time before the first measurement: four on each node."""
    meet = threading.Barrier(16)
    nodes = [Node(100 * nid, 4, nid) for nid in range(4)]
    outcome = Job(nodes, found(lambda start, end: meet.wait(TIMEOUT), 32)).run()
    assert (outcome.threads, outcome.chunks) == (16, 16)


@pytest.mark.parametrize(("how", "most", "threads"), [("found", 0, 6), ("found", 3, 3), ("fixed", 0, 4)])
def test_a_short_task_on_two_nodes_begins_with_no_more_than_it_has_chunks(how: str, most: int, threads: int) -> None:
    """One node has two chunks, the other has many. ``fixed`` counts the chunks of all nodes together."""
    begun, enough = threading.Semaphore(0), threading.Event()

    def each(start: int, end: int) -> None:
        begun.release()
        enough.wait(TIMEOUT)

    ctl = control(each, threads=how, max_threads=most, max_chunk_size=1, machine=FakeMachine(cpus=32), min_chunk_size=1)
    job = Job([Node(0, 2, 0), Node(100, 40, 1)], ctl)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(job.run)
        for _ in range(threads):
            assert begun.acquire(timeout=TIMEOUT)
        job.cancel()
        enough.set()
        assert run.result(TIMEOUT).threads == threads


def test_the_cap_holds() -> None:
    for most in (1, 2, 7):
        memory = Memory(64)
        outcome = Job([Node(0, 1500)], found(memory, 64, max_threads=most)).run()
        assert outcome.threads <= most
        assert memory.done == set(range(1500))


def test_a_cap_that_is_lifted_gives_threads_at_once() -> None:
    """The task gets the arithmetic's number of threads before the first measurement."""
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


def test_no_threads_come_and_go_once_a_numa_node_is_done() -> None:
    """Its threads end. Only the search for the number of the other node starts threads then."""
    memory, ledger = Memory(64), Ledger()
    Job([Node(0, 40, 0), Node(100, 1000, 1)], found(memory, 8, monitor=ledger)).run()
    assert len(memory.done) == 1040
    assert len(ledger.named("thread_started")) < 100


@pytest.mark.parametrize("helpers", [0, 1])
def test_more_numa_nodes_than_threads_that_can_be_had(helpers: int) -> None:
    """Each node should have a thread; those that there are do the work of all."""
    budget = HelperBudget(FakeMachine(cpus=helpers), 100)
    nodes = [Node(100 * nid, 20, nid) for nid in range(4)]
    job = Job(nodes, found(lambda start, end: None, 8, budget=budget))
    run = Background(job.run)
    try:
        outcome = run.result()
    finally:
        job.cancel()
    assert outcome.units_done == 80
    assert outcome.threads <= 1 + helpers


def test_chunks_of_more_units_than_fit_a_float() -> None:
    memory = Memory(64)
    many = 1 << 2000
    ctl = found(lambda start, end: memory(start // many, end // many), 64)
    ctl = dataclasses.replace(ctl, min_chunk_size=many, max_chunk_size=many)
    outcome = Job([Node(0, 1000 * many)], ctl).run()
    assert outcome.units_done == 1000 * many
    assert memory.done == set(range(1000))


def test_a_lower_cap_while_it_runs() -> None:
    memory, ledger, jobs = Memory(64), Ledger(), list[Job]()
    lowered = threading.Event()

    def each(start: int, end: int) -> None:
        memory(start, end)
        if start == 1500:
            jobs[0].set_max_threads(2)
            lowered.set()
        elif start > 1500:
            assert lowered.wait(TIMEOUT)

    jobs.append(Job([Node(0, 4000)], found(each, 64, monitor=ledger)))
    jobs[0].run()
    assert lowered.is_set()
    assert memory.done == set(range(4000))
    assert 0 < ledger.most_live(last=200) <= 2  # the search may replace a thread by another


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_cap_below_the_number_of_numa_nodes_while_it_runs(most: int) -> None:
    memory, ledger, jobs = Memory(64), Ledger(), list[Job]()
    lowered = threading.Event()

    def each(start: int, end: int) -> None:
        memory(start, end)
        if start == 50:
            until(lambda: len(ledger.live) > 4, "each node has a thread, and one of them another")
            jobs[0].set_max_threads(most)
            lowered.set()
        elif start % 1000 > 50:
            assert lowered.wait(TIMEOUT)

    nodes = [Node(1000 * nid, 300, nid) for nid in range(4)]
    jobs.append(Job(nodes, found(each, 32, monitor=ledger)))
    jobs[0].run()
    assert lowered.is_set()
    assert len(memory.done) == 1200
    assert 0 < ledger.most_live(last=200) <= most  # the search may replace a thread by another


def test_a_cap_holds_while_threads_that_are_too_many_are_at_their_chunks() -> None:
    ledger, jobs = Ledger(), list[Job]()
    lowered, left = threading.Event(), threading.Event()

    def lower() -> None:
        jobs[0].set_max_threads(1)
        lowered.set()

    two_on_the_first_node = threading.Barrier(2, lower)

    def each(start: int, end: int) -> None:
        if start in (50, 51):
            two_on_the_first_node.wait(TIMEOUT)
            until(lambda: len(ledger.live) <= 3, "only the first thread is left beside these two")
            left.set()
        elif start % 1000 > 50:
            assert (left if start % 1000 > 200 else lowered).wait(TIMEOUT)

    jobs.append(Job([Node(1000 * nid, 300, nid) for nid in range(4)], found(each, 32, monitor=ledger)))
    assert jobs[0].run().units_done == 1200


def test_no_memory_is_kept_of_threads_that_have_ended() -> None:
    meet, gone, first = threading.Barrier(2), threading.Semaphore(0), threading.get_ident()

    class Ends(Monitor):
        def thread_ended(self, slot: int) -> None:
            gone.release()

    def known() -> int:
        gc.collect()
        return sum(isinstance(each, TaskThread) for each in gc.get_objects())

    before, rounds, grown = known(), 0, list[int]()

    def each(start: int, end: int) -> None:
        nonlocal rounds
        if threading.get_ident() != first:
            meet.wait(TIMEOUT)
            meet.wait(TIMEOUT)
            return
        job.set_max_threads(2)
        meet.wait(TIMEOUT)
        job.set_max_threads(1)
        meet.wait(TIMEOUT)
        assert gone.acquire(timeout=TIMEOUT)
        rounds += 1
        if rounds == 20:
            grown.append(known() - before)
            job.cancel()

    job = Job([Node(0, 1000)], found(each, 8, max_threads=1, monitor=Ends()))
    job.run()
    assert grown[0] <= 3


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
