"""Done and remaining work of a node, against sets of units."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.ktask import Node
from ktaskfs.ktask.node_work import Chunk, NodeWork


@st.composite
def nodes(draw: st.DrawFn) -> tuple[int, int, list[Chunk]]:
    size = draw(st.integers(0, 60))
    position = draw(st.integers(0, size))
    cuts = sorted(draw(st.sets(st.integers(0, position))) | {0, position})
    chunks = [Chunk(a, b, a * 10, b * 10) for a, b in itertools.pairwise(cuts)]
    held = [chunk for chunk in chunks if draw(st.booleans())]
    if position < size and draw(st.booleans()):  # handed to a thread, but the position has not moved yet
        held.append(Chunk(position, size, position * 10, size * 10))
    return size, position, draw(st.permutations(held))


@given(nodes())
def test_split(node: tuple[int, int, list[Chunk]]) -> None:
    size, position, held = node
    node_work = NodeWork(Node(0, size), frozenset())
    node_work.left, node_work.at = size - position, position * 10
    finished, unfinished = node_work.split(held)
    not_done = {unit for chunk in held for unit in range(chunk.start, chunk.end)} | set(range(position, size))
    assert [unit for chunk in unfinished for unit in range(chunk.start, chunk.end)] == sorted(not_done)
    assert [unit for chunk in finished for unit in range(chunk.start, chunk.end)] == sorted(set(range(size)) - not_done)
    for chunks in (finished, unfinished):
        assert all(chunk.start < chunk.end for chunk in chunks)
        assert all(one.end < two.start for one, two in itertools.pairwise(chunks)), "not merged"
        assert all(chunk.first == chunk.start * 10 for chunk in chunks)
    assert all(chunk.last == chunk.end * 10 for chunk in finished)
