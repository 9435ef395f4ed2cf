"""Lines for standard error, which may be a pipe that nobody reads."""

from __future__ import annotations

import contextlib
import os
import select
import stat
from typing import Final

PIECE: Final = select.PIPE_BUF
"""Bytes of one write(2). A pipe that poll(2) calls writable takes that many at once (pipe(7)), from one writer."""


class LineOutput:
    """Writes lines to ``fd``, and drops a line instead of waiting for a reader.

    The next line that is written says how many were dropped: any user can make the daemon log something.
    """

    def __init__(self, fd: int) -> None:
        self._own = _open_again(fd)
        self._fd = fd if self._own is None else self._own
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._dropped = 0

    def close(self) -> None:
        """Close the second descriptor, if it has one; ``fd`` stays open."""
        if self._own is not None:
            os.close(self._own)
            self._own = None

    def write(self, line: str) -> None:
        """Write the line, if the file takes it now."""
        # It begins with a line feed, because the last line may have been cut.
        before = f"\nlines dropped, because nobody read them: {self._dropped}\n" if self._dropped else ""
        data = f"{before}{line}\n".encode(errors="backslashreplace")
        try:
            while data and self._poll.poll(0):
                data = data[os.write(self._fd, data[:PIECE]) :]
        except OSError:  # it is closed, its disk is full, or it does not wait and is full
            pass
        self._dropped = self._dropped + 1 if data else 0


def _open_again(fd: int) -> int | None:
    """Open a pipe so that no write waits, even if another process has just filled it after a poll(2).

    O_NONBLOCK for ``fd`` would hold for all processes that share it. None for other files, and for a pipe that this
    process may not open: the pipe of another user.
    """
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return None
