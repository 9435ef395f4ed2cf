"""A directory of the example whose file has another number in each server."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from ktaskfs.vfs import Attributes, Caller, Directory, TextFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.vfs import Inode
    from ktaskfs.vfs.text import OpenText


class Last(TextFile):
    """Its server dies of the command ``die`` at the next open(2), between the lookup and the answer."""

    def __init__(self, ino: int) -> None:
        super().__init__(ino, Attributes(0o666), lambda caller: "new\n", self._command)
        self._dies = False

    async def _command(self, caller: Caller, text: str) -> None:
        self._dies = text == "die"

    async def open(self, caller: Caller, flags: int) -> OpenText:
        if self._dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().open(caller, flags)


class Renumbered(Directory):
    """The file ``last``, which has another number in each server, as the files of tasks have."""

    def __init__(self, ino: int) -> None:
        super().__init__(ino, Attributes(0o755))
        self._child = Last(time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def lookup(self, name: str, caller: Caller) -> Inode | None:
        return self._child if name == "last" else None

    def names(self, caller: Caller) -> Sequence[str]:
        return ["last"]

    def find(self, ino: int) -> Inode | None:
        return self._child if ino == self._child.ino else None
