"""The places of threads: first their node, then another one; and the system calls for them on the real machine."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ktaskfs import ktask
from ktaskfs.ktask import NO_NODE, Control, HelperBudget, Job, LinuxMachine, Node, Placement
from ktaskfs.ktask.machine import place_on_node
from tests.ktask.fakes import TIMEOUT, Background, FakeMachine, Ledger, control

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

TWO_NODES = {0: frozenset(range(4)), 1: frozenset(range(4, 8))}


def test_threads_are_spread_over_the_nodes_and_put_there() -> None:
    machine, ledger = FakeMachine(cpus=8, nodes=TWO_NODES), Ledger()
    together = threading.Barrier(4)
    seen: dict[int, int] = {}

    def each(start: int, end: int) -> None:
        seen[threading.get_native_id()] = start // 100
        together.wait(TIMEOUT)

    ctl = control(each, max_chunk_size=1, max_threads=4, machine=machine, monitor=ledger)
    ktask.run_numa([Node(0, 2, 0), Node(100, 2, 1)], ctl)
    assert sorted(seen.values()) == [0, 0, 1, 1]
    assert sorted(ledger.named("thread_started")) == [(0, 0), (1, 1), (2, 0), (3, 1)]
    caller = threading.get_native_id()
    assert machine.placed[-1] == (caller, machine.placement()), "the caller is put back"
    for tid, where in machine.placed[:-1]:
        assert where == Placement(TWO_NODES[seen[tid]], (1, frozenset({seen[tid]})))


@pytest.mark.parametrize("paused", [False, True])
def test_a_helper_is_on_its_node_before_its_hook_runs_and_it_takes_a_chunk(paused: bool) -> None:
    machine, hooked = FakeMachine(cpus=8, nodes=TWO_NODES), threading.Event()
    there: list[list[Placement]] = []

    def look(slot: int) -> None:
        me = threading.get_native_id()
        there.append([where for tid, where in machine.placed if tid == me])
        hooked.set()

    ctl = control(
        lambda a, b: hooked.wait(TIMEOUT),
        max_chunk_size=1,
        max_threads=2,
        machine=machine,
        thread_start=look,
    )
    job = Job([Node(0, 4, 0), Node(100, 4, 1)], ctl)
    if paused:
        job.pause()
    run = Background(job.run)
    assert hooked.wait(TIMEOUT)
    job.resume()
    run.result()
    assert there == [[Placement(TWO_NODES[1], (1, frozenset({1})))]]


def test_helpers_that_come_later_may_use_the_cpus_that_the_caller_had() -> None:
    """They may use more than the CPUs of the caller's present node."""

    class Here(FakeMachine):
        def cpus(self) -> int:
            return len(self.placement().cpus)

        def placement(self) -> Placement:
            return self.placed[-1][1] if self.placed else super().placement()

    machine = Here(cpus=8, nodes=TWO_NODES)
    together = threading.Barrier(6)

    def each(start: int, end: int) -> None:
        if start == 0:
            job.set_max_threads(6)
        together.wait(TIMEOUT)

    job = Job([Node(0, 6, 0)], control(each, max_chunk_size=1, max_threads=1, machine=machine, cpu_percent=80))
    assert job.run().threads == 6


def test_a_helper_goes_to_its_node_as_soon_as_there_is_room() -> None:
    """While other helpers fill its node it works unpinned. When they have gone, it is moved there."""
    machine = FakeMachine(cpus=8, nodes={0: frozenset({0, 1})})
    budget, other = HelperBudget(machine, 50), object()
    first, done_twice = threading.get_native_id(), threading.Event()
    assert budget.hire(other)
    assert budget.pin(other, 0)
    own: list[int] = []

    def each(start: int, end: int) -> None:
        if threading.get_native_id() == first:
            assert done_twice.wait(TIMEOUT)
            return
        own.append(start)
        budget.dismiss(other)
        if len(own) == 2:
            done_twice.set()

    ctl = control(each, max_chunk_size=1, max_threads=2, machine=machine, budget=budget)
    ktask.run_numa([Node(0, 5, 0)], ctl)
    cpus = [where.cpus for tid, where in machine.placed if tid != first]
    assert cpus == [machine.placement().cpus, frozenset({0, 1})]


def test_only_ranges_without_a_node_leave_the_caller_where_it_is() -> None:
    machine = FakeMachine(cpus=8, nodes=TWO_NODES)
    ktask.run_numa([Node(0, 1), Node(100, 1, 1)], control(lambda a, b: None, max_threads=1, machine=machine))
    assert machine.placed[-2:] == [
        (threading.get_native_id(), Placement(TWO_NODES[1], (1, frozenset({1})))),
        (threading.get_native_id(), machine.placement()),
    ]


def test_the_cpus_of_a_node_are_looked_up_once() -> None:
    asked: list[int] = []

    class Machine(FakeMachine):
        def node_cpus(self, nid: int) -> frozenset[int]:
            asked.append(nid)
            return super().node_cpus(nid)

    nodes = [Node(index, 1, nid) for index in range(10) for nid in (NO_NODE, 0, 1)]
    Job(nodes, control(lambda a, b: None, machine=Machine(cpus=8, nodes=TWO_NODES)))
    assert sorted(asked) == [0, 1]


def test_an_empty_node_sends_its_threads_to_another() -> None:
    machine = FakeMachine(cpus=8, nodes=TWO_NODES)
    asked: list[int] = []

    def pick(count: int) -> int:
        asked.append(count)
        return count - 1

    seen: list[int] = []
    ctl = control(lambda a, b: seen.append(a), max_chunk_size=1, max_threads=1, machine=machine, pick=pick)
    ktask.run_numa([Node(0, 1, 0), Node(100, 1, 5), Node(200, 1, 1), Node(300, 0, 1)], ctl)
    assert seen == [0, 200, 100]
    assert asked == [2, 1]
    assert [where for _, where in machine.placed] == [
        Placement(TWO_NODES[0], (1, frozenset({0}))),
        Placement(TWO_NODES[1], (1, frozenset({1}))),
        Placement(machine.placement().cpus, (1, frozenset({5}))),  # a node without CPUs: only the memory is there
        machine.placement(),
    ]


def test_a_node_has_no_more_pinned_helpers_than_its_share() -> None:
    machine = FakeMachine(cpus=8, nodes={0: frozenset({0, 1})})
    together = threading.Barrier(4)
    ctl = control(lambda a, b: together.wait(TIMEOUT), max_chunk_size=1, max_threads=4, machine=machine, cpu_percent=50)
    ktask.run_numa([Node(0, 4, 0)], ctl)
    placed = [where.cpus for _, where in machine.placed[:-1]]
    anywhere = machine.placement().cpus
    assert sorted(map(len, placed)) == [2, 2, 8, 8], "the caller, one helper; and two where there is room"
    assert anywhere in placed
    assert all(where.policy == (1, frozenset({0})) for _, where in machine.placed[:-1]), "memory is preferred there"


def test_a_task_without_nodes_moves_nobody() -> None:
    machine = FakeMachine()
    ktask.run(0, 100, control(lambda a, b: None, max_threads=4, machine=machine))
    assert machine.placed == []


def test_pins_are_given_back() -> None:
    machine = FakeMachine(cpus=8, nodes=TWO_NODES)
    budget = HelperBudget(machine, 50)
    ctl = control(lambda a, b: None, max_threads=8, machine=machine, budget=budget)
    ktask.run_numa([Node(0, 50, 0), Node(100, 50, 1)], ctl)
    for nid in TWO_NODES:
        assert pins(budget, [nid] * 3) == [True, True, False]


def pins(budget: HelperBudget, nids: Iterable[int]) -> list[bool]:
    """Returns for each of these new helpers whether it is pinned to its node."""
    granted = []
    for nid in nids:
        helper = object()
        budget.hire(helper)
        granted.append(budget.pin(helper, nid))
    return granted


def test_a_helper_is_pinned_to_one_node_at_a_time() -> None:
    budget = HelperBudget(FakeMachine(cpus=8, nodes=TWO_NODES), 50)
    one, two, three = object(), object(), object()
    assert [budget.hire(helper) for helper in (one, two, three, one)] == [True] * 4
    assert [budget.pin(helper, 0) for helper in (one, two, three)] == [True, True, False]
    assert budget.pin(one, 1)
    assert budget.pin(three, 0), "the first one has gone"
    assert not budget.pin(two, NO_NODE)
    assert budget.hire(three), "still pinned"
    for _ in range(2):
        budget.dismiss(one)
        budget.dismiss(three)
    assert pins(budget, [0, 1, 0]) == [True, True, True]
    assert not budget.hire(object()), "and no more than there were"
    assert budget.hire(two), "a hired helper stays hired"


def test_place_on_node_stays_within_what_is_allowed() -> None:
    base = Placement(frozenset({1, 2, 6}), (0, frozenset()))
    assert place_on_node(base, NO_NODE, frozenset()) == base
    assert place_on_node(base, 0, TWO_NODES[0]) == Placement(frozenset({1, 2}), (1, frozenset({0})))
    assert place_on_node(base, 3, frozenset({9})) == Placement(base.cpus, (1, frozenset({3})))


def in_thread(function: Any) -> Any:
    """Returns the result of ``function`` in a separate thread, the only one that it may move or nice."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(TIMEOUT)
    return results[0]


def test_this_machine_places_and_puts_back() -> None:
    machine = LinuxMachine()

    def there_and_back() -> tuple[Placement, Placement, Placement]:
        before = machine.placement()
        one = Placement(frozenset({min(before.cpus)}), before.policy)
        machine.place(one)
        moved = machine.placement()
        machine.place(before)
        return before, moved, machine.placement()

    before, moved, after = in_thread(there_and_back)
    assert moved == Placement(frozenset({min(before.cpus)}), before.policy)
    assert after == before


def test_this_machine_prefers_memory_of_a_node_where_the_kernel_knows_nodes() -> None:
    machine = LinuxMachine()
    if machine.placement().policy is None or not machine.node_cpus(0):
        pytest.skip("no memory policy here: the kernel has no NUMA, or the container forbids it")

    def prefer() -> Placement:
        machine.place(place_on_node(machine.placement(), 0, machine.node_cpus(0)))
        return machine.placement()

    assert in_thread(prefer).policy == (1, frozenset({0}))


def test_this_machine_nices_a_thread() -> None:
    machine = LinuxMachine()

    before = machine.nice()

    def raise_mine() -> int:
        machine.set_nice(threading.get_native_id(), 19)
        return machine.nice()

    assert in_thread(raise_mine) == 19
    assert machine.nice() == before


def test_this_machine_knows_its_cpus() -> None:
    machine = LinuxMachine()
    assert machine.cpus() == len(os.sched_getaffinity(0))
    assert machine.node_cpus(9999) == frozenset()


def test_the_cpus_of_nodes_in_an_open_sys(tmp_path: Path) -> None:
    """A node with memory only has none."""
    for nid, cpus in enumerate(["0-2,5\n", "\n"]):
        node = tmp_path / f"devices/system/node/node{nid}"
        node.mkdir(parents=True)
        (node / "cpulist").write_text(cpus)
    sys = os.open(tmp_path, os.O_PATH)
    machine = LinuxMachine(sys)
    assert [machine.node_cpus(nid) for nid in range(3)] == [{0, 1, 2, 5}, frozenset(), frozenset()]
    os.close(sys)


def refuse(*_: Any) -> None:
    raise PermissionError


def test_a_machine_that_refuses_everything_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with a strict seccomp profile, on a processor with unknown numbers of system calls."""
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    monkeypatch.setattr(os, "setpriority", refuse)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="pdp11"))
    machine = LinuxMachine()
    assert machine.placement().policy is None
    together = threading.Barrier(2)
    ctl = ktask.Control(
        lambda a, b: together.wait(TIMEOUT),
        min_chunk_size=1,
        max_chunk_size=1,
        max_threads=2,
        budget=HelperBudget(FakeMachine(), 100),
        machine=Refusing(),
    )
    assert ktask.run_numa([Node(0, 1, 0), Node(100, 1, 1)], ctl).units_done == 2


class Refusing(LinuxMachine):
    """The real machine with CPUs for two threads."""

    def cpus(self) -> int:
        return 2


def test_the_defaults_run_on_this_machine() -> None:
    outcome = ktask.run_numa(
        [Node(0, 100, 0), Node(1000, 100)], ktask.Control(lambda a, b: None, min_chunk_size=1, max_chunk_size=3)
    )
    assert outcome.units_done == 200


def test_of_a_node_only_the_cpus_that_the_caller_may_use_count() -> None:
    """A task that may use one CPU of a node pins no helper there, because 80 % of one is none."""

    class Machine(FakeMachine):
        def placement(self) -> Placement:
            return Placement(frozenset({0, *range(64, 74), *range(200, 209)}), (0, frozenset()))

    budget = HelperBudget(Machine(cpus=20, nodes={0: frozenset(range(64)), 1: frozenset(range(64, 128))}))
    assert pins(budget, [0, *[1] * 9]) == [False, *[True] * 8, False]
    with pytest.raises(ValueError, match="cpu_percent"):
        HelperBudget(Machine(), 101)


def test_a_node_that_no_kernel_has_is_no_error() -> None:
    ctl = Control(lambda start, end: None, min_chunk_size=1, max_threads=1)
    assert ktask.run_numa([Node(0, 3, 5000)], ctl).units_done == 3
