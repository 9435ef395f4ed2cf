from __future__ import annotations

import errno
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.errors import InvalidValue, TargetError
from ktaskfs.ktask import NO_NODE
from ktaskfs.memory.run_log import RunLog
from ktaskfs.operations.base.nodes import chunk_sizes, make_nodes
from ktaskfs.operations.ranges._range import RangeParameters, resolve_extent
from ktaskfs.span import Node, Span

if TYPE_CHECKING:
    from random import Random

    from tests.support.runner import Runner

PIB = 1 << 50


def ask(offset: int = 0, length: int | None = None) -> RangeParameters:
    return RangeParameters(path="file", offset=offset, length=length)


def test_the_range_that_a_spec_means() -> None:
    assert resolve_extent(ask(), 100, may_grow=False) == Span(0, 100)
    assert resolve_extent(ask(40), 100, may_grow=False) == Span(40, 100)
    assert resolve_extent(ask(100), 100, may_grow=False) == Span(100, 100)
    assert resolve_extent(ask(40, 60), 100, may_grow=False) == Span(40, 100)
    assert resolve_extent(ask(40, 61), 100, may_grow=True) == Span(40, 101)
    assert resolve_extent(ask(PIB, PIB), 0, may_grow=True) == Span(PIB, 2 * PIB)


@pytest.mark.parametrize(
    ("offset", "length", "may_grow", "words"),
    [
        (0, None, True, "length is missing"),
        (101, None, False, "past the end"),
        (50, 51, False, "past the end"),
        (PIB, 1, False, "past the end"),
    ],
)
def test_a_range_that_means_nothing(offset: int, length: int | None, may_grow: bool, words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        resolve_extent(ask(offset, length), 0 if may_grow else 100, may_grow=may_grow)


@given(st.integers(0, 1 << 62), st.integers(1, 1 << 40), st.sampled_from([4096, 1 << 21, 1 << 30]))
def test_windows_are_the_range_cut_at_multiples(start: int, size: int, unit: int) -> None:
    end = start + size % (unit * 50) + 1
    pieces = list(Span(start, end).windows(unit))
    assert [pieces[0].start, pieces[-1].end] == [start, end]
    assert all(left.end == right.start and right.start % unit == 0 for left, right in pairwise(pieces))
    assert all(0 < piece.size <= unit for piece in pieces)
    wide = Span(start, end).widened(unit)
    assert wide.start <= start < wide.start + unit
    assert wide.end - unit < end <= wide.end
    assert wide.start % unit == wide.end % unit == 0


def test_the_chunk_parameter_is_rounded_up_to_whole_pages() -> None:
    sizes = chunk_sizes(3 << 20, least=16 << 20, most=64 << 20, align=2 << 20)
    assert (sizes.least, sizes.most) == (4 << 20, 64 << 20)
    sizes = chunk_sizes(None, least=16 << 20, most=64 << 20, align=1 << 30)
    assert (sizes.least, sizes.most) == (1 << 30, 1 << 30)
    assert chunk_sizes(1 << 40, least=1, most=64 << 20, align=4096).most == 1 << 40


def test_work_for_any_node(runner: Runner) -> None:
    (node,) = make_nodes(runner.kernel, Span(10, 30), None, 4096, None)
    assert (node.start, node.size, node.nid) == (10, 20, NO_NODE)
    (node,) = make_nodes(runner.kernel, Span(10, 30), [0], 4096, None)
    assert (node.start, node.size, node.nid) == (10, 20, 0)
    with pytest.raises(InvalidValue, match="node 1000"):
        make_nodes(runner.kernel, Span(10, 30), [0, 1000], 4096, None)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 4095))
def test_nodes_get_even_shares_of_whole_pages(runner: Runner, count: int, pages: int, less: int) -> None:
    extent = Span(4096, 4096 + pages * 4096 - less)
    nodes = make_nodes(runner.kernel, extent, [0] * count, 4096, None)
    assert [node.start for node in nodes] + [extent.end] == [extent.start] + [n.start + n.size for n in nodes]
    assert all(node.start % 4096 == 0 for node in nodes)
    assert max(n.size for n in nodes) - min(n.size for n in nodes) <= 2 * 4096
    assert len(nodes) == min(count, pages)


def test_what_is_left_of_an_earlier_run(runner: Runner) -> None:
    left = [Node(20, 10, 0), Node(10, 0, -1)]
    nodes = make_nodes(runner.kernel, Span(10, 30), None, 4096, left)
    assert [(node.start, node.size, node.nid) for node in nodes] == [(20, 10, 0), (10, 0, -1)]
    with pytest.raises(TargetError, match="start a new task") as caught:
        make_nodes(runner.kernel, Span(10, 30), None, 4096, [Node(0, 20, 0)])
    assert caught.value.errno == errno.ENXIO


@given(st.sets(st.integers(0, 60)), st.randoms(use_true_random=False), st.integers(0, 60), st.integers(0, 60))
def test_a_run_log_is_a_set(positions: set[int], chance: Random, start: int, end: int) -> None:
    log = RunLog()
    order = sorted(positions)
    chance.shuffle(order)
    for position in order:
        log.add(position, position + 1)
    assert len(log) == len([p for p in positions if p - 1 not in positions])
    found = [p for low, high in log.within(start, end) for p in range(low, high)]
    assert found == sorted(p for p in positions if start <= p < end)


def test_a_run_log_has_a_limit() -> None:
    log = RunLog(most=2)
    log.add(0, 1)
    log.add(2, 3)
    log.add(1, 2)
    log.add(4, 5)
    with pytest.raises(TargetError, match="undo=1 remembers at most 2 separate ranges of a file"):
        log.add(6, 7)
    assert list(log.within(0, 10)) == [(0, 3), (4, 5)]
