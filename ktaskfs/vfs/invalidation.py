"""Names that directories have lost by themselves. The kernel, which keeps a copy of the tree, must be told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from ktaskfs.vfs.inode import Directory


class Invalidations:
    """A queue of lost names. All of it runs on one event loop's thread.

    Without it the kernel would keep a name, and so all inodes below it, until it is short of memory.
    """

    def __init__(self) -> None:
        self._lost: list[tuple[int, str]] = []
        self._any = trio.Event()

    def add(self, directory: Directory, name: str) -> None:
        """``directory`` has no ``name`` any more."""
        self._lost.append((directory.ino, name))
        self._any.set()

    async def take(self) -> list[tuple[int, str]]:
        """Wait for lost names; returns the directories' inode numbers and the names, in order."""
        await self._any.wait()
        self._any = trio.Event()
        lost, self._lost = self._lost, []
        return lost
