"""Lines for standard error, which may be a pipe that nobody reads."""

from __future__ import annotations

import os
import select
from typing import Final

PIECE: Final = select.PIPE_BUF
"""Bytes of one write(2): a pipe that poll(2) calls writable takes that many at once (pipe(7))."""


class LineOutput:
    """Writes lines to ``fd``, and drops a line instead of waiting for a reader.

    The next line that is written says how many were dropped: any user can make the daemon log something.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._dropped = 0

    def write(self, line: str) -> None:
        """Write the line, if the file takes it now."""
        # It begins with a line feed, because the last line may have been cut.
        before = f"\n{self._dropped} lines were dropped, because nobody read them\n" if self._dropped else ""
        data = f"{before}{line}\n".encode(errors="backslashreplace")
        try:
            while data and self._poll.poll(0):
                data = data[os.write(self._fd, data[:PIECE]) :]
        except OSError:  # it is closed, its disk is full, or it does not wait and is full
            pass
        self._dropped = self._dropped + 1 if data else 0
