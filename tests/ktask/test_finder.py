"""What an evaluation of many nodes costs."""

from __future__ import annotations

from typing import Any

from ktaskfs.ktask import Node
from ktaskfs.ktask.finder import Finder
from ktaskfs.ktask.node_work import NodeWork


class Counted(list[NodeWork]):
    """Nodes that count how often one of them is looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)


def test_the_end_of_a_node_does_not_look_at_all_others() -> None:
    """A client may have a node for each of many files."""
    nodes = Counted(NodeWork(Node(each, 1, each % 2), frozenset()) for each in range(2000))
    finder = Finder(nodes)
    for node_work in [*nodes]:
        node_work.left = 0
        assert finder.even([])
    assert finder.total == 0
    assert nodes.looks < 20 * len(nodes)
