"""Names that directories have lost by themselves, for whoever keeps a copy of the tree: the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from ktaskfs.vfs.inode import Directory


class Invalidations:
    """A list of what is gone, to be worked off. All of it runs on one event loop's thread.

    Without it the kernel would keep a name, and so all the nodes below it, until it is short of memory.
    """

    def __init__(self) -> None:
        self._gone: list[tuple[int, str]] = []
        self._any = trio.Event()

    def add(self, directory: Directory, name: str) -> None:
        """``directory`` has no ``name`` any more."""
        self._gone.append((directory.ino, name))
        self._any.set()

    async def take(self) -> list[tuple[int, str]]:
        """Wait until there are some; the directories' inode numbers, and the names, in order."""
        await self._any.wait()
        self._any = trio.Event()
        gone, self._gone = self._gone, []
        return gone
