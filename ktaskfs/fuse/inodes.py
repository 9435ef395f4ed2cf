"""The inodes that the kernel knows, by number, and how often it was told of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktaskfs.vfs import Inode


class InodeTable:
    """Keeps an inode from the time the kernel is first told of it until the kernel has forgotten every telling.

    The count of each inode is the ``nlookup`` of FUSE_FORGET. The root is always known.
    """

    def __init__(self, root: Inode) -> None:
        self._root = root
        # Two maps, and no object for each entry: after a listing of everything there are hundreds of thousands.
        self._inodes: dict[int, Inode] = {root.ino: root}
        self._lookups: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._inodes)

    def __getitem__(self, ino: int) -> Inode:
        return self._inodes[ino]

    def told(self, inode: Inode) -> None:
        """The kernel is told of ``inode`` once more. Of two objects with one number the newer stays."""
        self._inodes[inode.ino] = inode
        self._lookups[inode.ino] = self._lookups.get(inode.ino, 0) + 1

    def forgotten(self, ino: int, times: int) -> None:
        """The kernel has forgotten ``times`` tellings of ``ino``."""
        left = self._lookups.get(ino, 0) - times
        if left > 0:
            self._lookups[ino] = left
        else:
            self._lookups.pop(ino, None)
            if ino != self._root.ino:
                self._inodes.pop(ino, None)
