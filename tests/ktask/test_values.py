"""Values that a Control, a Node or a method of Job refuses."""

from __future__ import annotations

import dataclasses
import math
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from ktaskfs.ktask import Job, Node
from tests.ktask.fakes import control

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.mark.parametrize(
    ("method", "value"), [("set_max_threads", -1), ("set_rate", 0), ("set_nice", 20), ("set_nice", -21)]
)
def test_values_out_of_range_are_refused(method: str, value: int) -> None:
    job = Job([Node(0, 3)], control(lambda a, b: None))
    with pytest.raises(ValueError, match=str(value)):
        getattr(job, method)(value)


@pytest.mark.parametrize("rate", [0, -1, math.inf, -math.inf, math.nan, 10**400])
def test_rates_that_are_none(rate: float) -> None:
    with pytest.raises(ValueError, match="rate is"):
        control(lambda a, b: None, rate=rate)
    with pytest.raises(ValueError, match="rate is"):
        Job([Node(0, 3)], control(lambda a, b: None)).set_rate(rate)


@pytest.mark.parametrize("name", ["min_chunk_size", "max_chunk_size", "max_threads", "align", "nice", "load_bal_shift"])
@pytest.mark.parametrize("value", [1.5, "1", math.nan])
def test_what_is_no_whole_number(name: str, value: Any) -> None:
    with pytest.raises(TypeError):
        control(lambda a, b: None, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("thread_func", None),
        ("iter_func", None),
        ("undo_func", 5),
        ("thread_start", "name"),
        ("pick", 0),
        ("budget", 5),
        ("monitor", print),
        ("rate", "5"),
        ("rate", b"5"),
        ("undo_failed", "no"),
        ("fixed_chunks", "no"),
    ],
)
def test_what_is_of_another_kind(name: str, value: Any) -> None:
    with pytest.raises(TypeError):
        dataclasses.replace(control(lambda a, b: None), **{name: value})


async def _coroutine(start: int, end: int) -> None:
    raise AssertionError


def _generator(start: int, end: int) -> Iterator[int]:
    yield start


async def _both(start: int, end: int) -> AsyncIterator[int]:
    yield start


class _Called:
    async def __call__(self, start: int, end: int) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    "function", [_coroutine, _generator, _both, partial(_coroutine), _Called(), _Called().__call__, partial(_Called())]
)
def test_a_function_whose_call_does_nothing(function: Any) -> None:
    """Every chunk would count as done."""
    for name in ("thread_func", "undo_func"):
        with pytest.raises(TypeError, match=name):
            dataclasses.replace(control(lambda a, b: None), **{name: function})


@pytest.mark.parametrize("rate", [5, True, 5.0, Fraction(5, 2), Decimal(5)])
def test_rates_of_any_kind_of_number(rate: Any) -> None:
    assert control(lambda a, b: None, rate=rate).rate == float(rate)


def test_a_monitor_need_not_be_derived() -> None:
    class Own:
        thread_started = chunk_assigned = node_advanced = chunk_done = chunk_failed = lambda *said: None
        thread_waits = thread_ended = threads_found = undo_started = thread_started

    assert Job([Node(0, 3)], control(lambda a, b: None, monitor=Own())).run().units_done == 3


@pytest.mark.parametrize(
    ("values", "error"),
    [((0, 1.0), TypeError), ((0, math.nan), TypeError), ((0, -1), ValueError), ((0, 1, -2), ValueError)],
)
def test_nodes_that_are_none(values: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Node(*values)


@pytest.mark.parametrize("value", [2.0, "2", math.nan])
def test_a_control_that_is_given_no_whole_number(value: Any) -> None:
    job = Job([Node(0, 3)], control(lambda a, b: None))
    with pytest.raises(TypeError):
        job.set_max_threads(value)
    with pytest.raises(TypeError):
        job.set_nice(value)
    assert job.run().units_done == 3
