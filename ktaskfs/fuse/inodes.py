"""Which nodes the kernel knows, by inode number, and how often it was told of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktaskfs.vfs import Inode


class InodeTable:
    """Keeps a node from the first time the kernel is told of it until it has forgotten every telling.

    The count for each node is the ``nlookup`` of FUSE_FORGET; the root is known from beginning to end.
    """

    def __init__(self, root: Inode) -> None:
        self._root = root
        # Two maps and no object for each entry: a listing of everything leaves hundreds of thousands here.
        self._nodes: dict[int, Inode] = {root.ino: root}
        self._lookups: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, ino: int) -> Inode:
        return self._nodes[ino]

    def told(self, node: Inode) -> None:
        """The kernel is told of ``node`` once more; of two objects with one number the newer stays."""
        self._nodes[node.ino] = node
        self._lookups[node.ino] = self._lookups.get(node.ino, 0) + 1

    def forgotten(self, ino: int, times: int) -> None:
        """The kernel has forgotten ``times`` tellings of ``ino``."""
        left = self._lookups.get(ino, 0) - times
        if left > 0:
            self._lookups[ino] = left
        else:
            self._lookups.pop(ino, None)
            if ino != self._root.ino:
                self._nodes.pop(ino, None)
