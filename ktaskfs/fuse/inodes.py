"""The inodes of a tree, by number."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from ktaskfs.vfs import Directory, StaticDirectory
from ktaskfs.vfs.refusals import AccessDenied, Stale

if TYPE_CHECKING:
    from ktaskfs.vfs import Caller, Inode


def _kept(inode: Inode) -> tuple[int, int, int]:
    attributes = inode.attributes()
    return attributes.mode, attributes.uid, attributes.gid


class Inodes:
    """Holds static inodes and open ones, and asks other directories for the inodes below them.

    So memory use does not depend on the inodes known to the kernel.
    """

    def __init__(self, root: Directory) -> None:
        self._static: dict[int, Inode] = {}
        self._others: list[Directory] = []
        self._open: dict[int, tuple[Inode, int]] = {}
        self.static_names: list[str] = []
        """The paths of static inodes."""
        self._enter(root, "")

    def digest(self) -> str:
        """A digest of the static data that the kernel may cache: names, numbers, attributes."""
        found = sorted((ino, each.kind, _kept(each)) for ino, each in self._static.items())
        return hashlib.sha256(repr((self.static_names, found)).encode()).hexdigest()

    def _enter(self, inode: Inode, path: str) -> None:
        self._static[inode.ino] = inode
        if isinstance(inode, StaticDirectory):
            for name, child in inode.children.items():
                self.static_names.append(path + name)
                self._enter(child, f"{path}{name}/")
        elif isinstance(inode, Directory):
            self._others.append(inode)

    def __getitem__(self, ino: int) -> Inode:
        """The inode with this number. Raises Stale if it was removed, or is an earlier server's.

        For a path the kernel then repeats the lookup, and opens what has the name now.
        """
        static = self._static.get(ino)
        if static is not None:
            return static
        if ino in self._open:
            return self._open[ino][0]
        for directory in self._others:
            if (inode := directory.find(ino)) is not None:
                return inode
        raise Stale("it does not exist any more")

    def for_opening(self, ino: int, caller: Caller) -> Inode:
        """The inode with this number, for an open by ``caller``; raises Stale, AccessDenied."""
        if (static := self._static.get(ino)) is not None:
            return static
        inode = self[ino]  # before the views are asked: an earlier server's number says nothing to them
        for directory in self._others:
            if not directory.admits(ino, caller):
                raise AccessDenied("this is another user's view: use a path from the root of the mount")
        return inode

    def opened(self, inode: Inode) -> None:
        """Keep ``inode`` while it is open, even if it is removed: fstat(2) asks for it by number."""
        _, times = self._open.get(inode.ino, (inode, 0))
        self._open[inode.ino] = inode, times + 1

    def released(self, ino: int) -> None:
        """Count one open of the inode less."""
        inode, times = self._open.pop(ino)
        if times > 1:
            self._open[ino] = inode, times - 1
