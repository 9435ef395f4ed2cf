"""Notices: changed files for inotify(7), which only sees changes through the kernel."""

from __future__ import annotations

import trio


class Notices:
    """Paths below the root of the mount, each once until it is taken."""

    def __init__(self) -> None:
        self._paths: dict[str, None] = {}
        self._any = trio.Event()

    def add(self, path: str) -> None:
        """The text of this file has changed."""
        self._paths[path] = None
        self._any.set()

    def discard(self, path: str) -> None:
        """The file was removed."""
        self._paths.pop(path, None)

    async def some(self) -> None:
        """Return when a path is available."""
        await self._any.wait()

    def take(self) -> list[str]:
        """All available paths."""
        paths = list(self._paths)
        self._paths.clear()
        self._any = trio.Event()
        return paths
