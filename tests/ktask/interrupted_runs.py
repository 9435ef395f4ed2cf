"""A signal handler raises in the first thread at any moment: no work is lost, and no helper stays behind."""

from __future__ import annotations

import _thread
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ktaskfs.ktask import HelperBudget, Job, Node
from ktaskfs.ktask.lock import OwnedLock
from ktaskfs.ktask.scheduler import Scheduler
from ktaskfs.ktask.task_threads import TaskThreads
from tests.ktask.fakes import TIMEOUT, Background, FakeClock, FakeMachine, Ledger, control, units_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from ktaskfs.ktask.task_thread import TaskThread

SIZE = 6
NODES = [Node(0, SIZE, 0)]


def interrupted_at(step: int, action: Callable[[], object], most: int = 1) -> tuple[BaseException | None, bool]:
    """Run ``action`` with ^C at the n-th step, and at the next steps up to ``most`` times in all if it goes on.

    Returns the exception that it raises, and whether it reached that step. A step is the entry to a function of
    ktaskfs.ktask, or the return of a function in C to it. Python looks for signals there, among other places.
    """
    steps = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal steps
        code = frame.f_code
        if "/ktaskfs/ktask/" not in code.co_filename or event not in ("call", "c_return"):
            return
        if code.co_name == "<genexpr>":  # Python drops an exception that a discarded generator raises
            return
        steps += 1
        if step <= steps < step + most:
            if steps < step + most - 1:
                sys.setprofile(profile)  # which Python takes away when it raises
            raise KeyboardInterrupt

    raised: BaseException | None = None
    sys.setprofile(profile)
    try:
        action()
    except BaseException as error:
        raised = error
    finally:
        sys.setprofile(None)
    return raised, steps >= step


def is_free(lock: OwnedLock) -> bool:
    """Whether another thread can take the lock."""
    return bool(Background(lambda: lock.acquire(blocking=False)).result())


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_lock_is_free_after_an_interrupt(most: int) -> None:
    step, reached = 0, True
    while reached:
        step += 1
        lock = OwnedLock()

        def take(lock: OwnedLock = lock) -> None:
            with lock:
                pass

        raised, reached = interrupted_at(step, take, most)
        assert (raised is not None) == reached
        assert is_free(lock), step
    assert step > 2


LOCK_ALARMS = """
import signal, threading
from ktaskfs.ktask.lock import OwnedLock

def ring(number, frame):
    raise KeyboardInterrupt

def free(lock):
    answer = []
    thread = threading.Thread(target=lambda: answer.append(lock.acquire(blocking=False)))
    thread.start()
    thread.join()
    return answer[0]

signal.signal(signal.SIGALRM, ring)
held = 0
for _ in range(2000):
    lock = OwnedLock()
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4)
        while True:
            with lock:
                pass
    except KeyboardInterrupt:
        held += not free(lock)
print(held, flush=True)
"""


def test_real_alarms_leave_a_lock_free() -> None:
    """More than half of the alarms leave a lock of ``threading`` locked on Python 3.14, none on 3.11 and 3.13."""
    script = subprocess.run(
        [sys.executable, "-c", LOCK_ALARMS], check=False, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert (script.returncode, script.stdout) == (0, "0\n"), script.stderr


@pytest.mark.parametrize("limited", [False, True], ids=["", "with a rate"])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_at_every_call_of_the_framework(threads: int, limited: bool) -> None:
    main = threading.get_native_id()
    step = missed = 0
    while missed < 20:  # a run may miss the step by chance, if helpers did more of the work
        step += 1
        lock = threading.Lock()
        done: set[int] = set()
        undone: set[int] = set()
        own: list[int] = []

        def each(
            start: int, end: int, lock: threading.Lock = lock, done: set[int] = done, own: list[int] = own
        ) -> None:
            if threading.get_native_id() == main:
                own.append(start)
            with lock:
                assert done.isdisjoint(range(start, end))
                done.update(range(start, end))

        def undo(start: int, end: int, undone: set[int] = undone) -> None:
            assert undone.isdisjoint(range(start, end))
            undone.update(range(start, end))

        ledger, machine = Ledger(), FakeMachine(cpus=4, nodes={0: frozenset({0, 1})})
        budget = HelperBudget(machine, 100)
        ctl = control(
            each,
            max_chunk_size=1,
            max_threads=threads,
            monitor=ledger,
            machine=machine,
            budget=budget,
            undo_func=undo,
            clock=FakeClock(),
            rate=1000.0 if limited else None,
        )
        job = Job(NODES, ctl)
        raised, reached = interrupted_at(step, job.run)
        missed = 0 if reached else missed + 1
        assert raised is None or isinstance(raised, KeyboardInterrupt), (step, raised)
        assert ledger.live == {}, step
        assert raised is None or undone <= done, step
        mine = [where for tid, where in machine.placed if tid == main]
        assert not mine or mine[-1] == machine.placement(), (step, "the caller is where it was")
        if raised is None:
            assert (done, undone) == (set(range(SIZE)), set()), step
        elif job.outcome().units_undone:
            assert done - undone <= set(own[-1:]), (step, "all but the chunk at whose end it was interrupted is undone")
        left = units_of(job.remaining())
        assert len(left) == len(set(left)), (step, left)
        assert set(left) >= set(range(SIZE)) - done, step
        job.set_max_threads(threads)
        assert ledger.live == {}, (step, "nobody begins after the end")
        assert [budget.hire(number) for number in range(5)] == [True] * 4 + [False], (step, "helpers are given back")


@pytest.mark.parametrize("moment", ["chunk_assigned", "node_advanced"])
def test_while_it_takes_a_chunk(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """The helper does all the rest before the first thread reports. Each unit is done once, or still to do."""
    main = threading.get_native_id()
    ledger, armed, rest_done = Ledger(), [True], threading.Event()
    done: list[int] = []
    undone: list[tuple[int, int]] = []
    first_in = threading.Event()

    def interrupt() -> None:
        if threading.get_native_id() == main and ledger.calls[-1][0] == moment and armed:
            armed.clear()
            first_in.set()
            raise KeyboardInterrupt

    def each(start: int, end: int) -> None:
        assert threading.get_native_id() != main
        assert first_in.wait(TIMEOUT)
        done.append(start)
        if end == SIZE:
            rest_done.set()

    fail = Scheduler.fail

    def fail_late(scheduler: Scheduler, thread: TaskThread, error: BaseException) -> None:
        assert rest_done.wait(TIMEOUT)
        fail(scheduler, thread, error)

    monkeypatch.setattr(Scheduler, "fail", fail_late)
    ledger.after = interrupt
    ctl = control(
        each,
        max_chunk_size=1,
        max_threads=2,
        monitor=ledger,
        undo_func=lambda start, end: undone.append((start, end)),
    )
    with pytest.raises(KeyboardInterrupt):
        Job([Node(0, SIZE)], ctl).run()
    assert units_of(undone) == sorted(set(done)) == done
    assert len(done) == (SIZE if moment == "chunk_assigned" else SIZE - 1)


def test_between_the_budgets_grant_and_what_follows_no_helper_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """^C comes at each bytecode of ``hire``. Python looks for signals less often."""
    monkeypatch.setattr(_thread, "start_new_thread", lambda function, arguments: arguments[2].detach())
    step, reached = 0, True
    while reached:
        step += 1
        machine, count = FakeMachine(cpus=4), 0
        budget = HelperBudget(machine, 100)
        ctl = control(lambda start, end: None, max_threads=4, machine=machine, budget=budget, clock=FakeClock())

        def trace(frame: FrameType, event: str, argument: Any, last: int = step) -> Any:
            nonlocal count
            if frame.f_code is not TaskThreads.hire.__code__:
                return None
            frame.f_trace_opcodes = True
            count += event == "opcode"
            if event == "opcode" and count == last:
                raise KeyboardInterrupt
            return trace

        raised: BaseException | None = None
        # Python 3.12 traces opcodes only if a frame wants it before settrace()
        sys._getframe().f_trace_opcodes = True
        sys.settrace(trace)
        try:
            Job(NODES, ctl).run()
        except KeyboardInterrupt as error:
            raised = error
        finally:
            sys.settrace(None)
        reached = raised is not None
        assert [budget.hire(number) for number in range(5)] == [True] * 4 + [False], step
    assert step > 100


ALARMS = """
import random, signal
from ktaskfs.ktask import Control, Job, LinuxMachine, Monitor, Node

class Live(Monitor):
    count = 0
    def thread_started(self, slot, tid, nid): self.count += 1
    def thread_ended(self, slot): self.count -= 1

class Machine(LinuxMachine):
    def cpus(self): return 64

def ring(number, frame):
    if armed:
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, ring)
choice, armed, interrupted = random.Random(1), False, 0
for _ in range(600):
    live = Live()
    job = Job([Node(0, 50)], Control(lambda start, end: None, min_chunk_size=1, max_chunk_size=1, max_threads=8,
                                     machine=Machine(), cpu_percent=100, monitor=live))
    signal.setitimer(signal.ITIMER_REAL, choice.uniform(5e-5, 3e-3))
    try:
        armed = True
        job.run()
        armed = False
    except KeyboardInterrupt:
        interrupted += 1
        armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert live.count <= 0, "somebody outlived the run"
print("interrupted" if interrupted else "never", flush=True)
"""
"""Runs in a separate process, so that an alarm cannot interrupt other code."""


def test_real_alarms() -> None:
    """The exception of the alarm's handler passes through at any moment. No other exception replaces it."""
    script = subprocess.run(
        [sys.executable, "-c", ALARMS], check=False, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert (script.returncode, script.stdout) == (0, "interrupted\n"), script.stderr
