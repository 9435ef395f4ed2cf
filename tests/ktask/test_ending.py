"""The end of a run when a signal handler or a monitor raises repeatedly, or a chunk function exits."""

from __future__ import annotations

import threading

import pytest

from ktaskfs.ktask import HelperBudget, Job, Node, TaskError, run
from ktaskfs.ktask.ending import ROUNDS
from tests.ktask.fakes import TIMEOUT, FakeClock, FakeMachine, Ledger, control


class Stop(BaseException):
    """A BaseException that is neither an Exception nor built into Python."""


class Late(Exception):
    """An exception as the handler of an alarm raises it."""


@pytest.mark.parametrize("times", [2, 3 * ROUNDS])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Stop, Late])
def test_while_it_waits_for_helpers(kind: type[BaseException], times: int) -> None:
    main = threading.get_native_id()
    helper_in, go_on = threading.Event(), threading.Event()
    finished: list[int] = []

    def each(start: int, end: int) -> None:
        if threading.get_native_id() == main:
            assert helper_in.wait(TIMEOUT)
        else:
            helper_in.set()
            assert go_on.wait(TIMEOUT)
        finished.append(start)

    class Interrupted(FakeClock):
        """A clock that raises while the first thread waits. The helper may end only after the last exception."""

        left = times

        def wait(self, gate: threading.Lock, seconds: float | None) -> None:
            if seconds is None and self.left:
                self.left -= 1
                raise kind("now")
            if seconds is None:
                go_on.set()
            super().wait(gate, seconds)

    ledger = Ledger()
    undone: list[tuple[int, int]] = []
    ctl = control(
        each,
        max_chunk_size=1,
        max_threads=2,
        monitor=ledger,
        clock=Interrupted(),
        undo_func=lambda start, end: undone.append((start, end)),
    )
    with pytest.raises(TaskError if kind is Late else kind) as caught:
        Job([Node(0, 2)], ctl).run()
    if isinstance(caught.value, TaskError):
        assert isinstance(caught.value.error, Late)
    assert sorted(finished) == [0, 1]
    assert ledger.live == {}
    assert undone == [(0, 2)], "what was finished is undone"


class Twice(FakeClock):
    """Interrupts the first thread twice while it waits for helpers, then sets ``over``."""

    def __init__(self) -> None:
        super().__init__()
        self.interrupts: list[BaseException] = [SystemExit("second"), KeyboardInterrupt("first")]
        self.over = threading.Event()

    def wait(self, gate: threading.Lock, seconds: float | None) -> None:
        if seconds is None and self.interrupts:
            raise self.interrupts.pop()
        if seconds is None:
            self.over.set()
        super().wait(gate, seconds)


@pytest.mark.parametrize("failed_before", [False, True])
def test_of_several_interrupts_the_first_passes(failed_before: bool) -> None:
    """Its cause is the earlier failure, if there is one."""
    main, clock, together = threading.get_native_id(), Twice(), threading.Barrier(2)

    def each(start: int, end: int) -> None:
        together.wait(TIMEOUT)
        if threading.get_native_id() != main:
            assert clock.over.wait(TIMEOUT)
        elif failed_before:
            raise Late

    with pytest.raises(KeyboardInterrupt, match="first") as caught:
        Job([Node(0, 2)], control(each, max_chunk_size=1, max_threads=2, clock=clock)).run()
    assert type(caught.value.__cause__) is (Late if failed_before else type(None))


class Broken(Ledger):
    """A wrong monitor: it raises when a chunk fails and when the first thread ends."""

    def chunk_failed(self, slot: int, node: int, start: int, end: int) -> None:
        super().chunk_failed(slot, node, start, end)
        raise ZeroDivisionError

    def thread_ended(self, slot: int) -> None:
        super().thread_ended(slot)
        if slot == 0:
            raise ZeroDivisionError


def test_a_monitor_that_raises_each_time_does_not_end_the_waiting() -> None:
    machine, ledger, together = FakeMachine(cpus=4, nodes={0: frozenset({0, 1})}), Broken(), threading.Barrier(2)
    main, undone = threading.get_native_id(), []
    waiting = threading.Event()

    class Clock(FakeClock):
        def wait(self, gate: threading.Lock, seconds: float | None) -> None:
            if seconds is None:
                waiting.set()
            super().wait(gate, seconds)

    finished: list[int] = []

    def each(start: int, end: int) -> None:
        together.wait(TIMEOUT)
        if threading.get_native_id() == main:
            raise Late
        assert waiting.wait(TIMEOUT)
        finished.append(start)

    ctl = control(
        each,
        max_chunk_size=1,
        max_threads=2,
        monitor=ledger,
        machine=machine,
        clock=Clock(),
        undo_func=lambda start, end: undone.append(start),
    )
    with pytest.raises(TaskError) as caught:
        Job([Node(0, 9, 0)], ctl).run()
    assert isinstance(caught.value.error, Late)
    assert ledger.live == {}
    assert finished == undone
    assert machine.placed[-1] == (main, machine.placement())


def test_a_budget_that_raises_each_time_ends_the_run() -> None:
    calls = 0

    class Budget(HelperBudget):
        def hire(self, helper: object) -> bool:
            raise Late

        def dismiss(self, helper: object) -> None:
            nonlocal calls
            calls += 1
            if calls < 5 * ROUNDS:
                raise Late

    with pytest.raises(TaskError) as caught:
        Job([Node(0, 9)], control(lambda start, end: None, budget=Budget(FakeMachine()))).run()
    assert isinstance(caught.value.error, Late)
    assert calls <= 2 * ROUNDS


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Stop, Late])
def test_while_it_undoes(kind: type[BaseException]) -> None:
    given: list[tuple[int, int]] = []

    def each(start: int, end: int) -> None:
        if start in (2, 20):
            raise ValueError(start)

    def undo(start: int, end: int) -> None:
        given.append((start, end))
        raise kind("in undo")

    job = Job([Node(10, 3), Node(0, 5)], control(each, max_chunk_size=1, max_threads=1, undo_func=undo))
    with pytest.raises(TaskError if kind is Late else kind):
        job.run()
    assert given == [(10, 13), (0, 2)]
    assert job.outcome().units_undone == 5


def test_an_exit_in_a_helpers_chunk_passes_as_in_the_callers() -> None:
    """Which thread meets a chunk is chance, so it must not decide which exception the caller gets."""
    caller = threading.get_native_id()
    both = threading.Barrier(2)

    def each(start: int, end: int) -> None:
        both.wait(TIMEOUT)
        if threading.get_native_id() != caller:
            raise SystemExit(4)

    with pytest.raises(SystemExit) as caught:
        run(0, 2, control(each, max_chunk_size=1, max_threads=2, threads="fixed"))
    assert caught.value.code == 4
