"""The speed against C without the start and the end of a task."""

from __future__ import annotations

from bench.beyond_start import least, split
from bench.harness import Contender, alternate


def test_the_start_and_the_end_are_taken_off() -> None:
    contenders = [
        Contender("ktaskfs, 2 threads", lambda: 0.110),
        Contender("C, 2 threads", lambda: 0.095),
        least(lambda: 0.010, lambda: None),
    ]
    series, beyond = split(alternate(contenders, 2), {"ktaskfs, 2 threads": "C, 2 threads"})
    assert [each.name for each in series] == ["ktaskfs, 2 threads", "C, 2 threads"]
    assert beyond.rows == [["ktaskfs, 2 threads / C, 2 threads", "10", "0.95"]]
