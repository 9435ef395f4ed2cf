"""What each user may hold of a mount."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import TooManyOpen
from ktaskfs.quota import Quota
from ktaskfs.vfs import OpenTexts, TooMuchText

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.errors import KtaskfsError

OPENINGS_MAX: Final = 256
"""Command files that one user may have open for writing."""
STREAMS_MAX: Final = 128
"""``events`` and ``wait`` that one user may have open: twice the tasks that one may have by default."""
STREAMS_TOTAL: Final = 1024
"""A reader costs the event loop some 0.1 ms a second."""
TEXT_MAX: Final = 64 << 20
"""Bytes of text that the open files of one user may hold."""
TEXT_TOTAL: Final = 512 << 20


class Limits:
    """The quotas of one mount.

    openings: command files open for writing, each of which takes two descriptors of this process, and three
              if the opener is in another user namespace. Together they are at most a quarter of the descriptors in
              number: tasks at work and starts need the rest (``tasks.table.DESCRIPTORS_PART``).
    streams:  readers of ``events`` and ``wait``.
    texts:    what other open files hold.
    """

    def __init__(self, descriptors: int | None = None) -> None:
        """``descriptors`` are those that this process may have, RLIMIT_NOFILE if None."""
        if descriptors is None:
            descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.openings = _quota("control files open for writing", OPENINGS_MAX, descriptors // 4, TooManyOpen)
        self.streams = _quota("events and wait files open", STREAMS_MAX, STREAMS_TOTAL, TooManyOpen)
        self._text_bytes = _quota("bytes of text in open files", TEXT_MAX, TEXT_TOTAL, TooMuchText)
        self.texts = OpenTexts(self._text_bytes)

    def observe(self, refused: Callable[[int, KtaskfsError], None]) -> None:
        """Have ``refused`` called with the uid and the error when a file cannot be opened or read for its limit."""
        self.streams.observers.append(refused)
        self._text_bytes.observers.append(refused)


def _quota(what: str, each: int, total: int, refusal: Callable[[str], KtaskfsError]) -> Quota:
    return Quota(what, each=each, total=total, refusal=refusal)
