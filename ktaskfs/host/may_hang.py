"""Calls that another process can block, such as a read of its mappings while it holds their lock."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Final, TypeVar

from ktaskfs.host.files import read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Q = TypeVar("Q")
A = TypeVar("A")

STEP: Final = 0.05
"""Seconds without an answer after which another thread takes the next question."""


def answers_in_time(ask: Callable[[Q], A], questions: Iterable[Q], patience: float, proc: int) -> list[tuple[Q, A]]:
    """Each question with its answer, unordered, without those that hang.

    ``patience`` is the total time in seconds without an answer while every asking thread sleeps, according to ``proc``
    (an open /proc): a thread that waits for a CPU does not hang. A hanging question keeps a thread until its answer or
    the end of the process. ``ask`` must not raise.
    """
    left = list(questions)
    answers: list[tuple[Q, A]] = []
    threads: list[int] = []
    complete = threading.Event()  # a wake-up for each answer would take longer than most answers
    expected = len(left)

    def work() -> None:
        threads.append(threading.get_native_id())
        while True:
            try:
                question = left.pop()  # atomic
            except IndexError:
                return
            answers.append((question, ask(question)))
            if len(answers) == expected:
                complete.set()

    while len(answers) < expected and patience > 0:
        if left:
            threading.Thread(target=work, daemon=True).start()
        before = -1
        while len(answers) > before and not complete.is_set():
            before = len(answers)
            complete.wait(STEP)
        if len(answers) < expected and not any(_runs(proc, thread) for thread in list(threads)):
            patience -= STEP
    return answers[:]


def _runs(proc: int, thread: int) -> bool:
    """Whether a thread of this process has a CPU or waits for one; proc_pid_stat(5), state."""
    with contextlib.suppress(OSError):  # it has ended
        return read_file(f"self/task/{thread}/stat", proc).rpartition(b") ")[2].startswith(b"R")
    return False
