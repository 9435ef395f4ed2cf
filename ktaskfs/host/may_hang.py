"""Calls that another process can block, such as a read of its mappings while it holds their lock."""

from __future__ import annotations

import contextlib
import errno
import threading
from typing import TYPE_CHECKING, Final, TypeVar

from ktaskfs.errors import NO_MORE_PROCESSES, TargetError
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
    the end of the process; if all have answered, no thread is left. ``ask`` must not raise. Raises TargetError (EAGAIN)
    at the limit of threads.
    """
    left = list(questions)
    answers: list[tuple[Q, A]] = []
    threads: list[threading.Thread] = []
    complete = threading.Event()  # a wake-up for each answer would take longer than most answers
    expected = len(left)

    def work() -> None:
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
            threads.append(threading.Thread(target=work, daemon=True))
            try:
                threads[-1].start()
            except RuntimeError as error:
                raise TargetError(f"cannot start a thread: {NO_MORE_PROCESSES}", errno=errno.EAGAIN) from error
        before = -1
        while len(answers) > before and not complete.is_set():
            before = len(answers)
            complete.wait(STEP)
        if len(answers) < expected and not any(_runs(proc, thread.native_id) for thread in threads):
            patience -= STEP
    for thread in threads if len(answers) == expected else ():
        thread.join()
    return answers[:]


def _runs(proc: int, thread: int | None) -> bool:
    """Whether a thread of this process has a CPU or waits for one; proc_pid_stat(5), state."""
    with contextlib.suppress(OSError):  # it has ended
        return read_file(f"self/task/{thread}/stat", proc).rpartition(b") ")[2].startswith(b"R")
    return False
