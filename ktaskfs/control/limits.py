"""The limits of users in a mount, which keep the daemon below 200 MiB.

MiB at the most, with the tunables as they are by default:

     35  the daemon when it has just begun
     58  5888 requests under way (fuse/session.py), each of some 10 KiB
     16  1 MiB of writes under way (fuse/turns.py), which take sixteen times their size while they are read
     18  open files (MEMORY_TOTAL)
     10  streams (STREAMS_TOTAL)
      8  32768 events that streams have not read (events.py)
      8  names of open directories (fuse/listing.py)
      8  results of ended tasks (tasks/retention.py)
     34  tasks: 1024 unfinished and 512 queued ones (tasks/table.py), and 1024 ended ones; each takes 5 KiB, or 12
         with the longest paths, and a queued one 4 more for its caller, and 4 for the groups
      4  logs of refused commands (command_log.py)

``python -m bench.fairness`` has attackers that fill them.
"""

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
"""Maximum command files of one user open for writing."""
OPENINGS_TOTAL: Final = 2048
STREAMS_MAX: Final = 128
"""Maximum open ``events`` and ``wait`` files of one user: twice the default maximum of tasks."""
STREAMS_TOTAL: Final = 1024
"""A reader costs the event loop some 0.1 ms a second, and takes 10 KiB with its backlog."""
MEMORY_MAX: Final = 4 << 20
"""Maximum bytes of one user's open files: their text, and the openers of command files."""
MEMORY_TOTAL: Final = 18 << 20


class Limits:
    """The quotas of one mount.

    openings: command files open for writing, each of which takes two descriptors of this process, and three
              if the opener is in another user namespace. Together they are at most a quarter of the descriptors in
              number: running tasks and starts need the rest (``tasks.table.DESCRIPTORS_PART``).
    streams:  readers of ``events`` and ``wait``.
    memory:   bytes that open files hold.
    texts:    the part of it that is text.
    """

    def __init__(self, descriptors: int | None = None) -> None:
        """``descriptors`` is the limit of this process, RLIMIT_NOFILE if None."""
        if descriptors is None:
            descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = min(descriptors // 4, OPENINGS_TOTAL)
        self.openings = _quota("control files open for writing", OPENINGS_MAX, most, TooManyOpen)
        self.streams = _quota("events and wait files open", STREAMS_MAX, STREAMS_TOTAL, TooManyOpen)
        self.memory = _quota("bytes in open files", MEMORY_MAX, MEMORY_TOTAL, TooMuchText)
        self.texts = OpenTexts(self.memory)

    def observe(self, refused: Callable[[int, KtaskfsError], None]) -> None:
        """Call ``refused`` with the uid and the error of an open or a read that fails."""
        self.streams.observers.append(refused)
        self.memory.observers.append(refused)
        self.texts.observers.append(refused)


def _quota(what: str, each: int, total: int, refusal: Callable[[str], KtaskfsError]) -> Quota:
    return Quota(what, each=each, total=total, refusal=refusal)
