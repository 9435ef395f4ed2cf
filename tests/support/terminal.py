"""A program on a separate terminal."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
from typing import TYPE_CHECKING, Final

from tests.support.poll import DEADLINE, until

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTROL_C: Final = "\x03"
SIZE: Final = frozenset({"LINES", "COLUMNS"})
"""Variables that would be believed in place of the terminal; pytest-xdist sets one for its processes."""
SEQUENCE: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Runs ``command`` with a terminal of ``rows`` and ``columns`` as its standard input, output and error."""

    def __init__(self, *command: str, rows: int = 24, columns: int = 80, env: Mapping[str, str] | None = None) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        inherited = {key: value for key, value in os.environ.items() if key not in SIZE}
        environment = {**inherited, "LC_ALL": "C.UTF-8", "TERM": "xterm", **(env or {})}
        # ^C reaches it, and ^\, even if the tests run in the background of a shell, which then ignores both.
        words = ["setsid", "--ctty", "--wait", "env", "--default-signal=INT,QUIT", *command]
        self._process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=environment)
        os.close(slave)
        self._said = b""

    @property
    def raw(self) -> str:
        """All that it has written so far."""
        while select.select([self._master], [], [], 0)[0]:
            try:
                piece = os.read(self._master, 65536)
            except OSError:  # EIO: the other side is closed
                break
            if not piece:
                break
            self._said += piece
        return self._said.decode(errors="replace")

    @property
    def text(self) -> str:
        """The same without what moves the cursor, or sets colours."""
        return SEQUENCE.sub("", self.raw)

    def sees(self, *words: str) -> None:
        """Return as soon as all of the words are on the screen."""
        try:
            until(lambda: all(word in self.text for word in words), f"{words} on the terminal")
        except AssertionError as error:
            error.add_note(f"there was: {self.text!r}")
            raise

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def end(self) -> int:
        """Wait for the end; returns the exit status."""
        until(lambda: self.raw is not None and self._process.poll() is not None, "the program ends", deadline=DEADLINE)
        return self._process.returncode

    def close(self) -> None:
        """End the program, in any state."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._master)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
