"""The speed of a task, from clock values that are made up."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.progress import NodeProgress, Phase
from ktaskfs.tasks.pace import Pace
from ktaskfs.tasks.task import EMPTY

if TYPE_CHECKING:
    from ktaskfs.progress import Snapshot

SECOND = 10**9
BEGUN = 5 * SECOND
TOTAL = 1 << 40


def at_work(done: int, *, begun: int = BEGUN, ended: int = 0) -> Snapshot:
    nodes = (NodeProgress(0, TOTAL, -1, done),)
    return replace(EMPTY, phase=Phase.RUNNING, started_ns=begun, ended_ns=ended, total=TOTAL, nodes=nodes)


def test_before_the_work_began_there_is_no_speed() -> None:
    assert Pace().speed(EMPTY, 10 * SECOND) == 0


def test_the_first_look_shows_the_average_since_the_beginning() -> None:
    for seconds in (1, 7, 3600):
        assert Pace().speed(at_work(100 * seconds), BEGUN + seconds * SECOND) == pytest.approx(100)


@pytest.mark.parametrize("looks", [1, 4, 50], ids=lambda looks: f"{looks} a second")
def test_chunks_that_come_every_two_seconds_show_the_limit(looks: int) -> None:
    """A plain measurement showed twice the limit in one second and 0 in the next."""
    pace = Pace()
    shown = [
        pace.speed(at_work(200 * (look // looks // 2)), BEGUN + look * SECOND // looks)
        for look in range(1, 100 * looks)
    ]
    assert all(80 < each < 125 for each in shown[20 * looks :])
    assert min(shown[2 * looks :]) > 0


def test_it_follows_a_change() -> None:
    pace = Pace()
    done, shown = 0, []
    for second in range(1, 61):
        done += 100 if second <= 30 else 1000
        shown.append(pace.speed(at_work(done), BEGUN + second * SECOND))
    assert shown[29] == pytest.approx(100)
    assert all(before < after for before, after in pairwise(shown[29:]))
    assert shown[59] == pytest.approx(1000, rel=0.06)


def test_work_that_stands_still_gets_slower_and_slower() -> None:
    pace = Pace()
    shown = [pace.speed(at_work(1000), BEGUN + second * SECOND) for second in range(10, 40)]
    assert all(before > after > 0 for before, after in pairwise(shown))
    assert pace.speed(at_work(1000), BEGUN + 10**7 * SECOND) < 1e-3


def test_the_speed_of_a_run_that_has_ended_is_that_of_the_whole() -> None:
    pace = Pace()
    pace.speed(at_work(5), BEGUN + SECOND)
    assert pace.speed(at_work(100, ended=BEGUN + 4 * SECOND), BEGUN + 90 * SECOND) == 25
    assert pace.speed(at_work(100, ended=BEGUN), BEGUN) == 0


def test_another_run_and_work_that_is_taken_back_begin_anew() -> None:
    pace = Pace()
    pace.speed(at_work(10**9), BEGUN + SECOND)
    assert pace.speed(at_work(40, begun=BEGUN + 2 * SECOND), BEGUN + 6 * SECOND) == pytest.approx(10)
    assert pace.speed(at_work(8, begun=BEGUN + 2 * SECOND), BEGUN + 10 * SECOND) == pytest.approx(1)


@given(st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 4), max_size=20))
def test_a_scribbled_page_does_no_harm(looks: list[tuple[int, int, int, int]]) -> None:
    pace = Pace()
    for now, begun, ended, position in looks:
        nodes = (NodeProgress(0, 2**64 - 1, -1, position),)
        snapshot = replace(EMPTY, started_ns=begun, ended_ns=ended, total=2**64 - 1, nodes=nodes)
        assert pace.speed(snapshot, now) >= 0
