"""The work of a task: the ranges of its nodes, from which chunks are handed out."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from ktaskfs.ktask.node_work import Chunk, NodeWork
from ktaskfs.ktask.outcome import NodeShare
from ktaskfs.span import NO_NODE, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Work:
    """Has no lock of its own: the scheduler's guards all of it.

    Where chunks that run or have failed are asked for, ``held`` has them by the index of their range.
    """

    __slots__ = ("_open", "_open_on", "left", "ranges", "size")

    def __init__(self, nodes: Sequence[Node], node_cpus: Callable[[int], frozenset[int]]) -> None:
        cpus = {nid: node_cpus(nid) for nid in {node.nid for node in nodes} - {NO_NODE}}
        self.ranges = [NodeWork(node, cpus.get(node.nid, frozenset())) for node in nodes]
        self.size = sum(node.size for node in nodes)
        """Units in all."""
        self.left = self.size
        """Units not yet handed out."""
        # Those with work left, and others that were used up since the last look.
        self._open = [index for index, part in enumerate(self.ranges) if part.left]
        self._open_on: dict[int, list[int]] = {}  # the same by NUMA node
        for index in self._open:
            self._open_on.setdefault(self.ranges[index].node.nid, []).append(index)

    def choose(self, index: int, pick: Callable[[int], int]) -> int:
        """The range for the next chunk of a thread that worked on ``index``, while there is work left.

        The same one, or another of the same NUMA node, or else a random one.
        """
        while not self.ranges[index].left:
            nid = self.ranges[index].node.nid
            near = self._open_on.get(nid, [])
            for indexes in (self._open, near):
                at = bisect_left(indexes, index)
                if indexes[at : at + 1] == [index]:
                    del indexes[at]
            index = near[0] if near else self._open[pick(len(self._open))]
        return index

    def finished(self, held: Mapping[int, list[Chunk]]) -> list[Chunk]:
        """What is done, merged where it touches."""
        return [span for index, part in enumerate(self.ranges) for span in part.split(held.get(index, ()))[0]]

    def begun(self, held: Mapping[int, list[Chunk]]) -> list[Chunk]:
        """The chunks of ``held`` that were handed out, in order."""
        return [span for index, part in enumerate(self.ranges) for span in part.begun(held.get(index, ()))]

    def shares(self, held: Mapping[int, list[Chunk]], *, undone: bool) -> tuple[list[NodeShare], list[Node]]:
        """What is done of each node, and all that is not; ``undone``: nothing counts as done any more."""
        shares, left = [], []
        for index, part in enumerate(self.ranges):
            node = part.node
            if undone:
                rest = [node] if node.size else []
            elif part.left or index in held:
                unfinished = part.split(held.get(index, ()))[1]
                rest = [Node(span.first, span.end - span.start, node.nid) for span in unfinished]
            else:
                rest = []
            left += rest
            shares.append(NodeShare(node.nid, node.size, node.size - sum(each.size for each in rest), part.chunks))
        return shares, left
