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


def rested(noise: float) -> Search:
    """A search that found that 8 of 16 threads help, at the end of a rest: next it measures them before a trial."""
    search = Search(8, 16)
    while not search.settled:
        threads = search.target
        search.decide(measured(threads, min(1, 8 / threads), 1000, noise), ENOUGH)
    while search.settled:
        search.decide(measured(8, 1.0, 1000, noise), ENOUGH)
    assert search.target == 8
    return search


def test_the_same_speed_at_the_end_of_a_rest_goes_on_by_small_steps() -> None:
    search = rested(0.1)
    search.decide(measured(8, 1.0, 1000, 0.1), ENOUGH)
    assert search.target == 10


def test_a_speed_that_changes_at_the_end_of_a_rest_restarts_the_search() -> None:
    search = rested(0.1)
    for _ in range(2):  # once may be chance
        search.decide(measured(8, 0.7, 1000, 0.1), ENOUGH)
        assert search.target == 8
    search.decide(measured(8, 0.7, 1000, 0.1), ENOUGH)
    assert search.target == 16  # it doubles, as in the beginning


def test_a_chance_difference_after_a_trial_is_not_the_end_of_a_rest() -> None:
    search = rested(0.1)
    search.decide(measured(8, 1.0, 1000, 0.1), ENOUGH)
    assert search.target == 10
    search.decide(measured(10, 0.8, 1000, 0.1), ENOUGH)  # no faster than 8
    search.decide(measured(8, 0.7, 1000, 0.1), ENOUGH)
    for _ in range(2):
        search.decide(measured(8, 1.0, 1000, 0.1), ENOUGH)
    assert search.target == 8
    assert search.settled


def test_a_speed_that_changes_during_a_trial_restarts_the_search() -> None:
    search = rested(0.6)
    search.decide(measured(8, 1.0, 20, 0.6), ENOUGH)
    assert search.target == 10
    search.decide(measured(10, 0.85, 40, 0.6), ENOUGH)
    for _ in range(3):
        assert search.target == 8  # it is not clear whether 10 are better
        search.decide(measured(8, 0.3, 1000, 0.6), ENOUGH)
    assert search.target == 16
    assert search.decide(measured(16, 0.3, 50, 0.6), ENOUGH)  # the trial of 10 counts no more
    assert search.kept == 16


def test_the_kept_number_is_measured_again_after_a_trial_that_failed() -> None:
    search = Search(8, 8)
    search.decide(measured(8, 1.0, 100, 0.1), ENOUGH)
    assert search.tried == 4
    search.decide(measured(4, 1.0, 100, 0.1), ENOUGH)
    assert search.target == search.kept == 8
    assert not search.settled
    search.decide(measured(8, 1.0, 100, 0.1), ENOUGH)
    assert search.settled  # a thread among 4 was as fast as among 8: fewer than 8 cannot be enough


def test_the_losses_of_several_reductions_add_up() -> None:
    """Even with a failed trial between them: 98 % of the speed is enough, 98 % of that is not."""
    search = Search(16, 16)
    rates = {16: 16.0, 11: 15.7, 10: 15.4, 9: 15.4, 8: 15.0}
    tried = []
    while not search.settled:
        threads = search.target
        tried.append(threads)
        search.decide(measured(threads, rates[threads] / threads, 5000, 0.1), ENOUGH)
    assert tried == [16, 8, 16, 11, 9, 11, 10, 11]
    assert search.kept == 11


def test_a_changed_speed_before_a_lower_limit_counts_no_more() -> None:
    search = rested(0.1)
    search.decide(measured(8, 0.7, 1000, 0.1), ENOUGH)
    search.limit(4)
    search.decide(measured(4, 1.0, 1000, 0.1), ENOUGH)
    while search.tried:
        search.decide(measured(search.tried, 0.1, 1000, 0.1), ENOUGH)
        search.decide(measured(4, 1.0, 1000, 0.1), ENOUGH)
    assert search.settled
    search.decide(measured(4, 0.7, 1000, 0.1), ENOUGH)
    assert search.settled  # a second change would restart the search
    search.decide(measured(4, 0.7, 1000, 0.1), ENOUGH)
    assert not search.settled
