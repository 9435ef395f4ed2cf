"""Controls of a running task (cancel, pause, resume), and the same controls after its end."""

from __future__ import annotations

import pytest

from ktaskfs.ktask import Job, Node, TaskError
from tests.ktask.fakes import TIMEOUT, Background, Gate, Ledger, control


def test_cancel_finishes_the_chunks_that_run_and_begins_no_other() -> None:
    gate = Gate()
    job = Job([Node(0, 10)], control(gate, max_chunk_size=1, max_threads=3))
    run = Background(job.run)
    gate.wait_begun(3)
    assert job.remaining() == (Node(0, 10),), "what runs is not done"
    job.cancel()
    gate.end_to(3)
    outcome = run.result()
    assert gate.none_begun()
    assert outcome.cancelled
    assert outcome.units_done == 3
    assert outcome.remaining() == (Node(3, 7),)


def test_what_remains_keeps_its_numa_node() -> None:
    job = Job([Node(0, 3, 1)], control(lambda a, b: job.cancel(), max_chunk_size=1, max_threads=1))
    assert job.run().remaining() == (Node(1, 2, 1),)


def test_a_job_cancelled_before_its_run_does_nothing() -> None:
    gate = Gate()
    job = Job([Node(0, 10)], control(gate))
    job.cancel()
    outcome = job.run()
    assert outcome.cancelled
    assert outcome.remaining() == (Node(0, 10),)
    assert gate.none_begun()


def test_a_paused_task_waits_and_goes_on_when_resumed() -> None:
    gate, ledger = Gate(), Ledger()
    job = Job([Node(0, 4)], control(gate, max_chunk_size=1, max_threads=2, monitor=ledger))
    run = Background(job.run)
    gate.wait_begun(2)
    job.pause()
    gate.end_to(4)
    for _ in range(2):
        assert ledger.waiting.acquire(timeout=TIMEOUT)
    assert sorted(ledger.named("thread_waits")) == [(0, "paused"), (1, "paused")]
    assert gate.none_begun()
    assert job.outcome().units_done == 2
    job.resume()
    assert run.result().units_done == 4


def test_a_paused_task_can_be_cancelled() -> None:
    gate, ledger = Gate(), Ledger()
    job = Job([Node(0, 4)], control(gate, max_threads=2, monitor=ledger))
    job.pause()
    run = Background(job.run)
    assert ledger.waiting.acquire(timeout=TIMEOUT)
    job.cancel()
    assert run.result().units_done == 0
    assert gate.none_begun()


def test_controls_after_the_end_do_nothing() -> None:
    job = Job([Node(0, 4)], control(lambda start, end: None))
    before = job.run()
    job.cancel()
    job.pause()
    job.resume()
    job.set_max_threads(8)
    job.set_rate(5)
    job.set_nice(5)
    assert job.outcome() == before


def test_after_a_failed_end_a_control_changes_nothing() -> None:
    def each(start: int, end: int) -> None:
        raise OSError

    job = Job([Node(0, 10)], control(each, max_chunk_size=1, max_threads=1))
    with pytest.raises(TaskError):
        job.run()
    before = job.outcome()
    for act in (job.cancel, job.pause, job.resume, lambda: job.set_max_threads(4), lambda: job.set_nice(1)):
        act()
    assert job.outcome() == before
