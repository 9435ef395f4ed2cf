"""What is done and what is not, against sets of units."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.ktask import Node
from ktaskfs.ktask.node_work import Chunk, NodeWork


@st.composite
def nodes(draw: st.DrawFn) -> tuple[int, int, list[Chunk]]:
    size = draw(st.integers(0, 60))
    position = draw(st.integers(0, size))
    cuts = sorted(draw(st.sets(st.integers(0, position))) | {0, position})
    chunks = [Chunk(a, b, a * 10, b * 10) for a, b in zip(cuts, cuts[1:], strict=False)]
    held = [chunk for chunk in chunks if draw(st.booleans())]
    if position < size and draw(st.booleans()):  # handed to a thread, but the position has not moved yet
        held.append(Chunk(position, size, position * 10, size * 10))
    return size, position, draw(st.permutations(held))


@given(nodes())
def test_split(node: tuple[int, int, list[Chunk]]) -> None:
    size, position, held = node
    part = NodeWork(Node(0, size), frozenset())
    part.left, part.at = size - position, position * 10
    finished, unfinished = part.split(held)
    not_done = {unit for span in held for unit in range(span.start, span.end)} | set(range(position, size))
    assert [unit for span in unfinished for unit in range(span.start, span.end)] == sorted(not_done)
    assert [unit for span in finished for unit in range(span.start, span.end)] == sorted(set(range(size)) - not_done)
    for spans in (finished, unfinished):
        assert all(span.start < span.end for span in spans)
        assert all(one.end < two.start for one, two in zip(spans, spans[1:], strict=False)), "not merged"
        assert all(span.first == span.start * 10 for span in spans)
    assert all(span.last == span.end * 10 for span in finished)
