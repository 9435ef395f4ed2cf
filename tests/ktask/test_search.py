"""The search alone: it gets measurements and returns a number of threads."""

from __future__ import annotations

import pytest

from ktaskfs.ktask.search import Measure, Search

ENOUGH = 100_000
"""Remaining chunks, more than any trial takes."""


def measured(threads: int, each: float, chunks: int, noise: float) -> Measure:
    """Returns a measurement of ``chunks`` chunks on ``threads`` threads. Speeds vary by ``noise`` around ``each``."""
    measure = Measure(threads)
    for number in range(chunks):
        measure.add(1, 1_000_000, round(1_000_000 / (each * (1 + noise * (-1) ** number))))
    return measure


def judged(search: Search, each: float, noise: float) -> int:
    """Returns the number kept after a whole trial of ``search.tried`` threads with the speed ``each``."""
    tried = search.tried
    assert tried
    for _ in range(10):
        search.decide(measured(tried, each, 1000, noise), ENOUGH)
        if search.target != tried or search.kept == tried:
            return search.kept
        search.decide(measured(search.kept, 1.0, 1000, noise), ENOUGH)
    raise AssertionError("no decision")


@pytest.mark.parametrize(("rate", "kept"), [(1.0, 4), (0.98, 4), (0.97, 8), (0.7, 8)])
def test_fewer_are_kept_unless_they_cost_too_much(rate: float, kept: int) -> None:
    """This holds for chunks of any variation, after the longest measurement."""
    search = Search(8, 8)
    search.decide(measured(8, 1.0, 8, 0.6), ENOUGH)
    assert search.tried == 4
    assert judged(search, rate * 2, 0.6) == kept


@pytest.mark.parametrize(("rate", "kept"), [(1.0, 4), (1.03, 4), (1.5, 8)])
def test_more_are_kept_only_if_they_are_faster(rate: float, kept: int) -> None:
    search = Search(4, 8)
    search.decide(measured(4, 1.0, 8, 0.6), ENOUGH)
    assert search.tried == 8
    assert judged(search, rate / 2, 0.6) == kept
