"""The pieces of a command that is longer than its writer's buffer, put together again.

stdio hands over what a buffer holds: 1024 bytes that began at a terminal, 4096 that began at a pipe, and so on; dd has
blocks of 512. So a write that is a multiple of 512 bytes long, and does not end a line, is taken for a piece.
"""

from __future__ import annotations

from typing import Final

from ktaskfs.errors import TooBig
from ktaskfs.vfs.refusals import BadWrite

COMMAND_MAX: Final = 64 * 1024
"""Bytes that one command may have. The kernel hands a write(2) over in one piece up to 1 MiB, so a longer
one is seen to be too long before any of it is acted upon."""
BLOCK: Final = 512
"""Every buffer and block size in use is a multiple of it: dd's, and BUFSIZ of musl and glibc."""


def is_piece(data: bytes) -> bool:
    """Whether a write with this data is only a part of a command."""
    return len(data) % BLOCK == 0 and not data.endswith(b"\n")


class Pieces:
    """What was written on one descriptor, command by command.

    For each write call ``take``, and if that gives a whole command either ``done`` or ``refused``.
    """

    __slots__ = ("_append", "_next", "_skipping", "held")

    def __init__(self, *, append: bool) -> None:
        """``append``: the kernel chooses the offsets of the writes, which mean nothing (O_APPEND)."""
        self.held = b""
        """The pieces until now of a command that is not whole."""
        self._append = append
        self._next = 0
        """Where a further piece, or a further command, may begin: bash writes "{ echo a; echo b; } > file" line by
        line, and one line after the other is at the next offset. After a command that ended no line nothing follows."""
        self._skipping = False
        """What comes is the rest of a command that was refused."""

    def take(self, offset: int, data: bytes) -> bytes | None:
        """The whole command, if ``data`` completes it; None while more is to come.

        Raises TooBig; BadWrite at a wrong offset, and for the rest of a refused command. All pieces are dropped then.
        """
        held, self.held = self.held, b""
        begins_anew = offset == 0 and not self._append
        if self._skipping and not begins_anew:
            self.refused(offset, data)
            raise BadWrite("this is the rest of a command that was refused")
        self._skipping = False
        if held and not self._append and offset != self._next:
            self._next = 0
            raise BadWrite(f"{len(held)} bytes of an unfinished command came before: neither is carried out")
        if not (self._append or begins_anew or offset == self._next):
            raise BadWrite(f"a command is one write at offset 0, not {offset}")
        if len(held) + len(data) > COMMAND_MAX:
            self.refused(offset, data)
            raise TooBig(f"a command has at most {COMMAND_MAX} bytes")
        if not is_piece(data):
            return held + data
        self.held = held + data
        self._next = offset + len(data)
        return None

    def done(self, offset: int, data: bytes) -> None:
        """The command that ``data`` completed was carried out."""
        self._next = offset + len(data) if data.endswith(b"\n") else 0

    def refused(self, offset: int, data: bytes) -> None:
        """The command of which ``data`` was the last, or is one piece, was refused: the writer's position stays."""
        self.held = b""
        self._skipping = is_piece(data)
        self._next = offset

    def finish(self) -> bytes:
        """What is held, as the whole command that it is if no more comes; empty if there is nothing."""
        held, self.held = self.held, b""
        self._next = 0
        return held
