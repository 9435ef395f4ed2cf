"""The work of a task: its nodes, which are divided into chunks."""

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

    ``held``, in the methods below, are the chunks that run or have failed, by the index of their node.
    """

    __slots__ = ("_open", "_open_on", "left", "nodes", "size")

    def __init__(self, nodes: Sequence[Node], node_cpus: Callable[[int], frozenset[int]]) -> None:
        cpus = {nid: node_cpus(nid) for nid in {node.nid for node in nodes} - {NO_NODE}}
        self.nodes = [NodeWork(node, cpus.get(node.nid, frozenset())) for node in nodes]
        self.size = sum(node.size for node in nodes)
        """Units in all."""
        self.left = self.size
        """Units not yet handed out."""
        # The indexes of nodes with work left, and of some that were used up since the last check.
        self._open = [index for index, node_work in enumerate(self.nodes) if node_work.left]
        self._open_on: dict[int, list[int]] = {}  # the same by NUMA node
        for index in self._open:
            self._open_on.setdefault(self.nodes[index].node.nid, []).append(index)

    def choose(self, index: int, pick: Callable[[int], int]) -> int:
        """The index of the node for the next chunk of a thread that worked on ``index``, while there is work left.

        The same node, else another of the same NUMA node, else a random one.
        """
        while not self.nodes[index].left:
            nid = self.nodes[index].node.nid
            near = self._open_on.get(nid, [])
            for indexes in (self._open, near):
                at = bisect_left(indexes, index)
                if indexes[at : at + 1] == [index]:
                    del indexes[at]
            index = near[0] if near else self._open[pick(len(self._open))]
        return index

    def finished(self, held: Mapping[int, list[Chunk]]) -> list[Chunk]:
        """The finished work, merged where chunks touch."""
        return [done for index, node_work in enumerate(self.nodes) for done in node_work.split(held.get(index, ()))[0]]

    def begun(self, held: Mapping[int, list[Chunk]]) -> list[Chunk]:
        """The chunks of ``held`` that were handed out, in order."""
        return [chunk for index, node_work in enumerate(self.nodes) for chunk in node_work.begun(held.get(index, ()))]

    def shares(self, held: Mapping[int, list[Chunk]], *, undone: bool) -> tuple[list[NodeShare], list[Node]]:
        """The finished work of each node, and all unfinished work; ``undone``: nothing counts as done."""
        shares, left = [], []
        for index, node_work in enumerate(self.nodes):
            node = node_work.node
            if undone:
                rest = [node] if node.size else []
            elif node_work.left or index in held:
                unfinished = node_work.split(held.get(index, ()))[1]
                rest = [Node(chunk.first, chunk.end - chunk.start, node.nid) for chunk in unfinished]
            else:
                rest = []
            left += rest
            done = node.size - sum(each.size for each in rest)
            shares.append(NodeShare(node.nid, node.size, done, node_work.chunks))
        return shares, left
