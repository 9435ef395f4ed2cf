"""The threads of a run: their number, their start, and the effect of a thread that the system refuses."""

from __future__ import annotations

import _thread
import subprocess
import sys
import threading
from typing import Any

import pytest

from ktaskfs import ktask
from ktaskfs.ktask import HelperBudget, Job, Node, TaskError
from ktaskfs.ktask.task_thread import TaskThread
from tests.ktask.fakes import TIMEOUT, Chunks, FakeClock, FakeMachine, Ledger, Unlucky, control


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
        threads="fixed",
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


@pytest.mark.parametrize("granted", [0, 2])
@pytest.mark.parametrize("refusal", [RuntimeError, MemoryError])
def test_threads_that_cannot_be_had_are_done_without(
    monkeypatch: pytest.MonkeyPatch, granted: int, refusal: type[Exception]
) -> None:
    start = _thread.start_new_thread
    left = [None] * granted

    def scarce(function: Any, arguments: Any) -> int:
        if not left:
            raise refusal("can't start new thread")
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


def test_no_threads_are_started_for_less_than_an_aligned_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(Job, "_start", lambda self, helpers: started.append(len(helpers)))
    ktask.run(0, 100, control(lambda start, end: None, align=64, max_threads=4, clock=FakeClock()))
    assert started == [1]


def test_the_counts_of_a_slot_go_on_where_its_last_thread_ended() -> None:
    before = TaskThread(1, 0, None)
    before.chunks, before.units, before.busy_ns = 2, 30, 400
    after = TaskThread(1, 0, before)
    assert (after.chunks, after.units, after.busy_ns) == (2, 30, 400)


def test_chunks_are_for_the_threads_that_there_are() -> None:
    """Threads that were wanted but not granted do not count."""
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
    """A monitor must not raise. If it does, no thread waits forever for a helper that has ended."""

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


LATE = """
import _thread, atexit, os, threading, time
from ktaskfs import ktask
from ktaskfs.ktask import Control

start, leave = _thread.start_new_thread, threading.Event()

def late(function, arguments):
    def begin():
        leave.wait()
        time.sleep(0.1)  # the interpreter's end is faster
        os.write(1, b"came\\n")  # in one piece, beside the other's
        function(*arguments)
    return start(begin, ())

class Many(ktask.LinuxMachine):
    def cpus(self):
        return 3

_thread.start_new_thread = late
control = Control(lambda a, b: None, min_chunk_size=1, max_threads=3, machine=Many(), cpu_percent=100)
print(ktask.run(0, 10, control).threads, flush=True)
atexit.register(leave.set)
"""


def test_the_interpreter_does_not_end_before_a_thread_that_it_was_asked_for() -> None:
    """CPython 3.11 crashes if a thread begins after the interpreter's end."""
    script = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (script.returncode, script.stdout, script.stderr) == (0, "1\ncame\ncame\n", "")


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


class Patience(FakeClock):
    """A clock that never advances. Only another thread wakes a waiting one."""

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
    monkeypatch.setattr(Job, "_start", lambda self, helpers: None)
    clock = FakeClock()
    outcome = ktask.run(0, 10, control(lambda start, end: None, max_threads=4, clock=clock))
    assert (outcome.units_done, outcome.threads) == (10, 1)
    assert 10e6 <= clock.now_ns < 11e6


def test_the_cpus_are_those_of_the_thread_that_runs() -> None:
    machine = FakeMachine(cpus=8)
    job = Job([Node(0, 8)], control(lambda start, end: None, max_chunk_size=1, max_threads=8, machine=machine))
    machine.count = 1
    assert job.run().threads == 1
