"""A text file that counts its uses."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ktaskfs.vfs import Attributes, Caller, Change, TextFile

if TYPE_CHECKING:
    from ktaskfs.errors import KtaskfsError
    from ktaskfs.vfs.text import OpenText

ALICE = Caller(1000, 1000, 42)
BIG = 1 << 20


class Counter:
    """Shows how often it was shown, takes commands, and remembers them."""

    def __init__(self) -> None:
        self.renders = 0
        self.commands: list[tuple[Caller, str]] = []
        self.refused: list[tuple[str, int]] = []
        self.change = Change()

    def render(self, caller: Caller) -> str:
        self.renders += 1
        return f"render {self.renders} for {caller.uid}\n"

    async def write(self, caller: Caller, text: str) -> str | None:
        self.commands.append((caller, text))
        return f"did {text}\n" if text.startswith("reply") else None

    def note_refused(self, caller: Caller, text: str, error: KtaskfsError) -> None:
        self.refused.append((text, error.errno))

    def file(self) -> TextFile:
        return TextFile(2, Attributes(0o644), self.render, self.write, change=self.change, refused=self.note_refused)


async def opened(file: TextFile, flags: int = os.O_RDWR) -> OpenText:
    """An opening by ALICE."""
    return await file.open(ALICE, flags)
