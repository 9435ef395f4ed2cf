"""Notices: which files have changed, for inotify(7), which sees only what goes through the kernel."""

from __future__ import annotations

import trio


class Notices:
    """Paths below the root of the mount, each once until somebody takes it."""

    def __init__(self) -> None:
        self._paths: dict[str, None] = {}
        self._any = trio.Event()

    def add(self, path: str) -> None:
        """The text of this file has changed."""
        self._paths[path] = None
        self._any.set()

    def discard(self, path: str) -> None:
        """The file is not there any more."""
        self._paths.pop(path, None)

    async def some(self) -> None:
        """Return when there is something to take."""
        await self._any.wait()

    def take(self) -> list[str]:
        """All that there are."""
        paths = list(self._paths)
        self._paths.clear()
        self._any = trio.Event()
        return paths
