"""Joins the pieces of a command that its writer passes on bit by bit.

stdio writes full buffers: 1024 bytes if allocated for a terminal, 4096 for a pipe, and so on; dd has blocks of 512. So
a write of a multiple of 512 bytes that does not end a line counts as a piece. bash writes each line by itself. So JSON
that is not closed counts as a piece, too.
"""

from __future__ import annotations

from typing import Final

from ktaskfs.errors import TooBig
from ktaskfs.vfs.open_json import OpenJson, begins_json
from ktaskfs.vfs.refusals import BadWrite

COMMAND_MAX: Final = 64 * 1024
"""Maximum bytes of one command. The kernel passes a write(2) of up to 1 MiB in one piece, so a longer
command is refused before any part of it runs."""
BLOCK: Final = 512
"""Every buffer and block size in use is a multiple of it: dd's, and BUFSIZ of musl and glibc."""


def is_piece(data: bytes) -> bool:
    """Whether a write of this data is a full buffer, and so only a part of a command."""
    return len(data) % BLOCK == 0 and not data.endswith(b"\n")


class Pieces:
    """The writes of one descriptor, command by command.

    For each write call ``take``, and after a whole command either ``done`` or ``refused``.
    """

    __slots__ = ("_append", "_goes_on", "_json", "_next", "_open_json", "_skipping", "held")

    def __init__(self, *, append: bool, json: bool = False) -> None:
        """``append``: ignore the offsets, which the kernel chooses (O_APPEND). ``json``: a command may be JSON."""
        self.held = b""
        """The pieces of an incomplete command."""
        self._append = append
        self._json = json
        self._open_json: OpenJson | None = None
        """Looks for the end of the current command, if that is JSON."""
        self._goes_on = False
        """The last data does not complete its command."""
        self._next = 0
        """The offset for the next piece or command: bash writes "{ echo a; echo b; } > file" line by line, each at
        the next offset. Nothing may follow a command without a newline."""
        self._skipping = False
        """The next data is the rest of a refused command."""

    def take(self, offset: int, data: bytes) -> bytes | None:
        """The whole command, if ``data`` completes it; else None.

        Raises TooBig; BadWrite at a wrong offset, and for the rest of a refused command; this drops all pieces.
        """
        held, self.held = self.held, b""
        begins_anew = offset == 0 and not self._append
        is_rest = self._skipping and not begins_anew
        if not (held or is_rest):
            self._open_json = OpenJson() if self._json and begins_json(data) else None
        self._goes_on = is_piece(data)
        if self._open_json is not None and len(data) <= COMMAND_MAX:  # more would take long, and is refused
            self._goes_on |= self._open_json.goes_on(data)
        if is_rest:
            self.refused(offset)
            raise BadWrite("this is the rest of a command that was refused")
        self._skipping = False
        if held and not self._append and offset != self._next:
            self._next = 0
            raise BadWrite(f"{len(held)} bytes of an unfinished command came before: neither is carried out")
        if not (self._append or begins_anew or offset == self._next):
            raise BadWrite(f"a command is one write at offset 0, not {offset}")
        if len(held) + len(data) > COMMAND_MAX:
            self.refused(offset)
            raise TooBig(f"a command has at most {COMMAND_MAX} bytes")
        if not self._goes_on:
            return held + data
        self.held = held + data
        self._next = offset + len(data)
        return None

    def done(self, offset: int, data: bytes) -> None:
        """The command that ``data`` completed has run."""
        self._next = offset + len(data) if data.endswith(b"\n") else 0

    def refused(self, offset: int) -> None:
        """The command with the last data, of ``offset``, was refused: the writer's position stays."""
        self.held = b""
        self._skipping = self._goes_on
        self._next = offset

    def finish(self) -> bytes:
        """The held pieces as a whole command, if no more follow; empty if there are none."""
        held, self.held = self.held, b""
        self._next = 0
        return held
