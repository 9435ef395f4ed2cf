"""Questions that hang delay no other question."""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import NO_MORE_PROCESSES, TargetError
from ktaskfs.host.may_hang import STEP, answers_in_time

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def proc() -> Iterator[int]:
    fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_every_question_is_answered_once(proc: int) -> None:
    assert sorted(answers_in_time(lambda number: number * 2, range(1000), 100 * STEP, proc)) == [
        (n, 2 * n) for n in range(1000)
    ]
    assert answers_in_time(str, [], STEP, proc) == []


@pytest.mark.parametrize("hanging", [{0}, {49}, {3, 20, 21}, set(range(0, 50, 10))])
def test_those_that_hang_are_left_out(hanging: set[int], proc: int) -> None:
    never = threading.Event()

    def ask(number: int) -> int:
        if number in hanging:
            never.wait()
        return -number

    try:
        found = dict(answers_in_time(ask, range(50), 10 * STEP, proc))
        assert found == {number: -number for number in range(50) if number not in hanging}
    finally:
        never.set()


def test_it_gives_up_where_all_hang(proc: int) -> None:
    never = threading.Event()
    asked = []

    def ask(number: int) -> None:
        asked.append(number)
        never.wait()

    try:
        assert answers_in_time(ask, range(50), 4 * STEP, proc) == []
        assert 1 < len(asked) < 10
    finally:
        never.set()


def test_one_that_is_slow_is_waited_for(proc: int) -> None:
    slow = threading.Event()
    asked = threading.Event()

    def ask(number: int) -> int:
        if number == 0:
            asked.set()
            slow.wait()
        elif asked.is_set() and number == 1:
            slow.set()
        return number

    assert sorted(answers_in_time(ask, [1, 0], 100 * STEP, proc)) == [(0, 0), (1, 1)]


def test_one_that_still_runs_is_waited_for(proc: int) -> None:
    """Like a busy machine; the clock of its CPU shows how long it has run."""

    def ask(number: int) -> int:
        while time.thread_time() < 4 * STEP:
            pass
        return number

    assert answers_in_time(ask, [1], STEP, proc) == [(1, 1)]


def test_no_thread_is_left_after_all_answers(proc: int) -> None:
    """A process with one thread can still fork afterwards."""
    before = set(threading.enumerate())  # those of other tests may end meanwhile
    for _ in range(100):
        answers_in_time(str, range(100), 100 * STEP, proc)
        assert set(threading.enumerate()) <= before


def test_the_limit_of_threads_is_a_refusal(proc: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(TargetError) as caught:
        answers_in_time(str, [1], STEP, proc)
    assert (caught.value.errno, caught.value.message) == (errno.EAGAIN, f"cannot start a thread: {NO_MORE_PROCESSES}")
