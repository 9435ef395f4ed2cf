"""``info/holders`` and ``info/holders.json``: the holders of huge pages that the reader may see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.errors import KtaskfsError
from ktaskfs.vfs import NEW_TEXT_SIZE, AccessDenied, Attributes, Caller, Look, TextFile

if TYPE_CHECKING:
    from ktaskfs.control.filesystem import Filesystem

PATIENCE: Final = 0.9
"""Seconds for which a request waits for the thread, so that it is answered within a second."""


class HoldersFile(TextFile):
    """The file of one user; only that user's processes can make its text. Root would see more, and then so would the
    user."""

    __slots__ = ("_fs", "_json")

    def __init__(self, ino: int, attributes: Attributes, fs: Filesystem, *, as_json: bool) -> None:
        super().__init__(ino, attributes, self._text, texts=fs.limits.texts)
        self._fs = fs
        self._json = as_json

    async def look(self, caller: Caller, *, anew: bool) -> Look:
        if caller.uid == self.attributes().uid:
            try:
                return await super().look(caller, anew=anew)
            except KtaskfsError:  # the next open(2) will report the reason
                pass
        return Look(NEW_TEXT_SIZE, self.attributes().time_ns)

    async def _text(self, caller: Caller) -> str:
        if caller.uid != self.attributes().uid:
            raise AccessDenied("only its owner may use this file")
        deadline = trio.current_time() + PATIENCE
        found = await self._fs.service.looks.find(await self._fs.callers.find(caller), deadline)
        return found.json if self._json else found.table
