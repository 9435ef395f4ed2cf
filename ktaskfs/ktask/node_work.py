"""A node's work: chunks are handed out in order, so the chunks in flight define the finished work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ktaskfs.span import Node


class Chunk(NamedTuple):
    """Units ``start`` to ``end`` of a node, counted from its start, and the client's positions of the two ends.

    Chunks that touch can be merged into one.
    """

    start: int
    end: int
    first: Any
    last: Any


class NodeWork:
    """The work of one node. Has no lock of its own: the scheduler's guards ``left``, ``at`` and ``chunks``."""

    __slots__ = ("at", "chunks", "cpus", "left", "node")

    def __init__(self, node: Node, cpus: frozenset[int]) -> None:
        self.node = node
        self.cpus = cpus
        """The CPUs of its NUMA node; empty where they are not known, or the node names no NUMA node."""
        self.left = node.size
        """Units not yet handed out."""
        self.at = node.start
        """The client's position where those begin."""
        self.chunks = 0
        """Chunks done."""

    def begun(self, held: Iterable[Chunk]) -> list[Chunk]:
        """The chunks of ``held`` that were handed out, in order.

        A chunk that begins at the position is not among them: its thread was interrupted before the position moved.
        """
        position = self.node.size - self.left
        return sorted((chunk for chunk in held if chunk.start < position), key=lambda chunk: chunk.start)

    def split(self, held: Iterable[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
        """The finished and the unfinished chunks, each in order and merged where they touch.

        ``held`` are the chunks that run or have failed. The last unfinished one may end at None: a position that
        ``iter_func`` has not reached is unknown.
        """
        finished: list[Chunk] = []
        unfinished: list[Chunk] = []
        position = self.node.size - self.left
        done_to, done_at = 0, self.node.start
        for chunk in (*self.begun(held), Chunk(position, self.node.size, self.at, None)):
            if chunk.start > done_to:
                finished.append(Chunk(done_to, chunk.start, done_at, chunk.first))
            done_to, done_at = chunk.end, chunk.last
            if chunk.end > chunk.start:
                if unfinished and unfinished[-1].end == chunk.start:
                    before = unfinished.pop()
                    chunk = Chunk(before.start, chunk.end, before.first, chunk.last)
                unfinished.append(chunk)
        return finished, unfinished
