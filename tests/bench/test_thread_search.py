"""The goals for the number of threads that a task finds, in virtual time: each seed always gives the same run."""

from __future__ import annotations

import pytest

from bench import thread_cases
from bench.thread_cases import GOOD_SPEED, GOOD_THREADS

LEAST_SPEED = 0.9
"""Of each single run."""
CASES = {(case.name, case.cpus): case for case in thread_cases.cases()}


@pytest.mark.parametrize(
    ("name", "cpus"),
    [
        ("3 threads' bandwidth", 8),
        ("12 threads' bandwidth", 16),
        ("18 threads' bandwidth", 32),
        ("64 threads' bandwidth", 64),
        ("two nodes", 64),
        ("bandwidth halves", 32),
        ("others come and go", 32),
    ],
)
def test_about_as_fast_as_the_best_fixed_number_with_not_many_more_threads(name: str, cpus: int) -> None:
    (row,) = thread_cases.judge([CASES[f"{name}, noise", cpus]])
    assert row.speed >= GOOD_SPEED
    assert row.share <= GOOD_THREADS
    assert min(row.speeds) >= LEAST_SPEED
