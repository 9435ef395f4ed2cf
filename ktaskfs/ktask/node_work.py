"""A node's range of work, handed out in order, and which part of it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ktaskfs.span import Node


class Chunk(NamedTuple):
    """Units ``start`` to ``end`` of a node, counted from its start, and the client's positions of the two ends."""

    start: int
    end: int
    first: Any
    last: Any


class NodeWork:
    """The work of one node. The scheduler's lock guards ``left``, ``at`` and ``chunks``."""

    __slots__ = ("at", "chunks", "cpus", "left", "node")

    def __init__(self, node: Node, cpus: frozenset[int]) -> None:
        self.node = node
        self.cpus = cpus
        """Of its NUMA node; empty where that is not known, or there is none."""
        self.left = node.size
        """Units not yet handed out."""
        self.at = node.start
        """The client's position where those begin."""
        self.chunks = 0
        """Chunks done."""

    def begun(self, held: Iterable[Chunk]) -> list[Chunk]:
        """The chunks of ``held`` in order, without one that was interrupted before the position moved past it."""
        position = self.node.size - self.left
        return sorted((span for span in held if span.start < position), key=lambda span: span.start)

    def split(self, held: Iterable[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
        """The finished and the unfinished spans, each in order and merged where they touch.

        ``held`` are the chunks that run or have failed. The last unfinished span may end at None: nobody knows a
        position that ``iter_func`` has not reached.
        """
        finished: list[Chunk] = []
        unfinished: list[Chunk] = []
        position = self.node.size - self.left
        done_to, done_at = 0, self.node.start
        for span in (*self.begun(held), Chunk(position, self.node.size, self.at, None)):
            if span.start > done_to:
                finished.append(Chunk(done_to, span.start, done_at, span.first))
            done_to, done_at = span.end, span.last
            if span.end > span.start:
                if unfinished and unfinished[-1].end == span.start:
                    before = unfinished.pop()
                    span = Chunk(before.start, span.end, before.first, span.last)
                unfinished.append(span)
        return finished, unfinished
