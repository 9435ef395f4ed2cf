"""^C in commands that do not simply end at ^C."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED: Final = 130
"""The exit status after ^C."""


class Interrupts(Protocol):
    """^C as a command that follows tasks sees it."""

    @property
    def fd(self) -> int:
        """Readable after ^C, until ``drain``."""

    @property
    def count(self) -> int:
        """How often it was pressed."""

    def drain(self) -> None:
        """Empty ``fd``, so that the next ^C makes it readable again."""


class OwnInterrupts:
    """Counts the ^C of this process while it is entered. An ignored SIGINT stays ignored: a shell ignores it for a
    command in the background, and below ``trap '' INT``."""

    def __init__(self) -> None:
        self.count = 0
        self.fd, self._writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> OwnInterrupts:
        self._handler = signal.getsignal(signal.SIGINT)
        if self._handler is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._note)
        self._wakeup = signal.set_wakeup_fd(self._writable, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        signal.signal(signal.SIGINT, self._handler)
        os.close(self.fd)
        os.close(self._writable)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1

    def drain(self) -> None:
        """See Interrupts."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)
