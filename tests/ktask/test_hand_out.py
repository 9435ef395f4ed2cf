"""The chunks and their order with one thread, against a plain model of the C loop."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ktaskfs import ktask
from ktaskfs.ktask import Node
from tests.ktask.fakes import FakeMachine, Ledger, control

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=6)


def model(sizes: list[int], chunk: int, picks: list[int]) -> list[tuple[int, int, int]]:
    """ktask_thread for one thread on distinct nodes. Returns (node, start, end) of each chunk."""
    remaining = list(sizes)
    picks = list(picks)
    handed = []
    node = 0
    while sum(remaining):
        if remaining[node] == 0:
            open_nodes = [index for index, size in enumerate(remaining) if size]
            node = open_nodes[picks.pop(0) % len(open_nodes)]
        size = min(chunk, remaining[node])
        start = sizes[node] - remaining[node]
        handed.append((node, start, start + size))
        remaining[node] -= size
    return handed


@given(SIZES, st.integers(1, 50), st.lists(st.integers(0, 1000), min_size=6, max_size=6))
def test_one_thread_follows_the_framework(sizes: list[int], chunk: int, picks: list[int]) -> None:
    nodes = [Node((index, 0), size, nid=index) for index, size in enumerate(sizes)]
    seen: list[tuple[int, int, int]] = []
    left = list(picks)

    def advance(position: tuple[int, int], size: int) -> tuple[int, int]:
        return position[0], position[1] + size

    def note(start: tuple[int, int], end: tuple[int, int]) -> None:
        assert start[0] == end[0]
        seen.append((start[0], start[1], end[1]))

    ctl = control(
        note,
        min_chunk_size=1,
        max_chunk_size=chunk,
        max_threads=1,
        iter_func=advance,
        pick=lambda count: left.pop(0) % count,
        machine=FakeMachine(nodes={index: frozenset({index}) for index in range(len(sizes))}),
    )
    outcome = ktask.run_numa(nodes, ctl)
    assert seen == model(sizes, chunk, picks)
    assert outcome.units_done == sum(sizes)
    assert outcome.chunks == len(seen)
    assert [share.units for share in outcome.per_node] == sizes
    assert [share.chunks for share in outcome.per_node] == [
        sum(node == index for node, _, _ in seen) for index in range(len(sizes))
    ]
    assert outcome.remaining() == ()


def test_without_a_largest_chunk_one_thread_gets_everything_at_once() -> None:
    seen: list[tuple[int, int]] = []
    ktask.run(7, 1000, control(lambda start, end: seen.append((start, end)), max_threads=1))
    assert seen == [(7, 1007)]


def test_fixed_chunks_are_of_one_size_and_others_shrink() -> None:
    """With four threads, the order of the chunks does not depend on which thread asks."""

    def sizes(fixed: bool) -> list[int]:
        ledger = Ledger()
        ktask.run(0, 165, control(lambda a, b: None, max_threads=4, fixed_chunks=fixed, monitor=ledger))
        return [end - start for _, _, start, end in ledger.named("chunk_assigned")]

    assert sizes(fixed=True) == [10] * 16 + [5]
    # At most an eighth of what is left: half of the even share of four threads.
    assert sizes(fixed=False) == [10] * 9 + [9, 8, 7, 6, 5, 5, 4, 3, 3, 3, 2, 2, 2, 2] + [1] * 14


def test_ranges_of_the_same_node_are_done_in_order() -> None:
    seen: list[tuple[int, int]] = []

    def never(count: int) -> int:
        raise AssertionError("there was no choice to make")

    ctl = control(lambda start, end: seen.append((start, end)), max_threads=1, pick=never)
    ktask.run_numa([Node(0, 5), Node(10, 0), Node(20, 3), Node(30, 2)], ctl)
    assert seen == [(0, 5), (20, 23), (30, 32)]


def test_positions_may_be_any_object() -> None:
    letters = "abcdefghij"

    class Link:
        """An element of a linked list: a position that is no number."""

        def __init__(self, rest: str) -> None:
            self.value = rest[:1]
            self.next: Link | None = Link(rest[1:]) if rest else None

    def advance(link: Link, size: int) -> Any:
        at: Link | None = link
        for _ in range(size):
            assert at is not None
            at = at.next
        return at

    seen: list[str] = []

    def chunk(start: Link, end: Link) -> None:
        part = ""
        at: Link | None = start
        while at is not None and at is not end:
            part += at.value
            at = at.next
        seen.append(part)

    ktask.run(Link(letters), 10, control(chunk, max_chunk_size=4, max_threads=1, iter_func=advance))
    assert seen == ["abcd", "efgh", "ij"]


def test_sizes_go_past_64_bits() -> None:
    size = 2**70 + 1
    seen: list[tuple[int, int]] = []
    outcome = ktask.run(0, size, control(lambda a, b: seen.append((a, b)), max_chunk_size=2**68, max_threads=1))
    assert outcome.units_done == size
    assert seen[-1] == (2**70, size)
    assert len(seen) == 5


def test_chunks_are_aligned_to_the_start_of_the_node() -> None:
    seen: list[tuple[int, int]] = []
    ctl = control(lambda a, b: seen.append((a, b)), min_chunk_size=3, max_chunk_size=9, align=4, max_threads=1)
    ktask.run(100, 21, ctl)
    assert seen == [(100, 108), (108, 116), (116, 121)]


def test_the_last_chunks_are_aligned_too() -> None:
    ledger = Ledger()
    ktask.run(0, 200, control(lambda a, b: None, align=4, max_threads=4, monitor=ledger))
    assert all(start % 4 == 0 for _, _, start, _ in ledger.named("chunk_assigned"))
