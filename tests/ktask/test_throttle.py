"""The token bucket on a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.ktask.throttle import TokenBucket

SECOND = 10**9


def bucket(rate: float | None) -> TokenBucket:
    made = TokenBucket()
    made.set_rate(rate, 0)
    return made


def test_no_limit_never_delays() -> None:
    made = bucket(None)
    made.spend(10**30)
    assert made.delay(0) == 0
    assert made.rate is None
    assert made.chunk_limit(10**30) == 10**30


@given(st.floats(0.5, 1e12), st.lists(st.integers(1, 10**9), min_size=1, max_size=50))
def test_mean_rate_is_kept(rate: float, chunks: list[int]) -> None:
    made = bucket(rate)
    now = 0
    for units in chunks:
        now += int(made.delay(now) * SECOND) + 1
        made.spend(units)
    now += int(made.delay(now) * SECOND)
    # The bucket starts empty, so this much time at least must have been asked for; no more than that plus roundings.
    assert now / SECOND == pytest.approx(sum(chunks) / rate, rel=1e-3, abs=1e-6 * len(chunks))


def test_a_chunk_larger_than_the_bucket_runs_and_is_paid_for_afterwards() -> None:
    made = bucket(100)
    assert made.delay(0) == 0
    made.spend(1000)
    assert made.delay(0) == pytest.approx(10)
    assert made.delay(4 * SECOND) == pytest.approx(6)
    assert made.delay(10 * SECOND) == 0


def test_idle_time_is_worth_a_short_burst_only() -> None:
    made = bucket(100)
    assert made.delay(1000 * SECOND) == 0
    made.spend(20)
    assert made.delay(1000 * SECOND) == pytest.approx(0.1), "ten of twenty units came from the burst"


def test_a_lower_rate_does_not_lengthen_what_is_owed() -> None:
    made = bucket(100)
    made.spend(25)
    made.set_rate(1, 0)
    assert made.delay(0) == pytest.approx(0.25)


def test_a_higher_rate_shortens_what_is_owed() -> None:
    made = bucket(100)
    made.spend(1000)
    made.set_rate(1000, 0)
    assert made.delay(0) == pytest.approx(1)


def test_lifting_the_limit_forgives_what_is_owed() -> None:
    made = bucket(1)
    made.spend(1000)
    made.set_rate(None, 0)
    assert made.delay(0) == 0
    made.set_rate(1, 5 * SECOND)
    assert made.delay(5 * SECOND) == 0


def test_a_chunk_is_worth_a_quarter_of_a_second_at_most() -> None:
    made = bucket(1000)
    assert made.chunk_limit(10_000) == 250
    assert made.chunk_limit(100) == 100


def test_a_rate_that_goes_down_and_up_forgives_nothing() -> None:
    made = bucket(1000)
    made.spend(500)
    for _ in range(10):
        made.set_rate(1, 0)
        made.set_rate(1000, 0)
    assert made.delay(0) == pytest.approx(0.5)


def test_a_debt_of_a_low_rate_is_paid_at_a_higher_one() -> None:
    made = bucket(1)
    made.spend(100)
    made.set_rate(1000, 0)
    assert made.delay(0) == pytest.approx(0.1)


@pytest.mark.parametrize("rate", [5e-324, 1.0, 1.7e308])
def test_no_number_is_too_large(rate: float) -> None:
    made = bucket(rate)
    made.spend(1 << 2000)
    assert made.delay(1 << 70) >= 0
    made.spend(1 << 2000)
    assert made.delay(1 << 71) >= 0
