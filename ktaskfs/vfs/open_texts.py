"""The texts of a mount's files between lookup, open, and the first read."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.user_threads import UserThreads
from ktaskfs.vfs.inode import Look

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.errors import KtaskfsError
    from ktaskfs.quota import Quota
    from ktaskfs.vfs.inode import Caller

OPENING_SIZE: Final = 1024
"""Bytes for an open file besides its text; about its size in Python."""
LOOKS_MAX: Final = 256
"""Maximum texts that wait for an open after a lookup. Most never get one: ls(1) and test(1) only use stat(2)."""
LOOKS_SIZE: Final = 4 << 20
"""Their maximum total bytes."""
DEATHS_MAX: Final = 4
"""Threads for a user's closes at the same time. One hangs as long as the closing process does in execve(2)."""
DEATHS_OF_ROOT_MAX: Final = 16
KNOWN_MAX: Final = 1024
"""Maximum files with a known change time. A dropped one counts as changed."""


class TextSnapshot(NamedTuple):
    """The text of a file at one moment.

    version:    how many changes of the file were counted before.
    changed_ns: since when the file has this text, as far as it was looked at; ns since the epoch.
    """

    text: bytes
    version: int
    changed_ns: int


class OpenTexts:
    """The looked-up and the open texts. Bytes shared by several opens of a user count once in ``quota``."""

    def __init__(self, quota: Quota | None = None, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.observers: list[Callable[[int, KtaskfsError], None]] = []
        """Called with the user and the error when a text cannot be made for a reader."""
        self._quota = quota
        self._now_ns = now_ns
        self._openings: dict[tuple[int, int], int] = {}
        """By user and id of the bytes."""
        self.not_readers: set[int] = set()
        """Processes that pin names or set times: their requests need no new text."""
        self._known: OrderedDict[int, tuple[int, Look]] = OrderedDict()
        """By inode number: a hash of the last text, and its size and time."""
        self._looks: OrderedDict[tuple[int, int, int], TextSnapshot] = OrderedDict()
        self._looks_size = 0
        self._opened: dict[tuple[int, int, int], TextSnapshot] = {}
        """Both by inode number, user and pid."""
        self.open_threads = UserThreads(of_one=1, of_root=1)
        """They look whether a process has its file open."""
        self.death_threads = UserThreads(of_one=DEATHS_MAX, of_root=DEATHS_OF_ROOT_MAX)
        """They look whether a process is being killed. They are separate because the other question may be slow, and
        because processes that hang would use up the threads that all users share."""

    def hold(self, user: int, text: bytes) -> None:
        """Count an open of ``user`` that holds ``text``; raises the quota's refusal."""
        key = user, id(text)
        if self._quota is not None:
            self._quota.take(user, OPENING_SIZE + (0 if key in self._openings else len(text)))
        self._openings[key] = self._openings.get(key, 0) + 1

    def let_go(self, user: int, text: bytes) -> None:
        """An open of ``user`` has released ``text``."""
        key = user, id(text)
        others = self._openings.pop(key) - 1
        if others:
            self._openings[key] = others
        if self._quota is not None:
            self._quota.give_back(user, OPENING_SIZE + (0 if others else len(text)))

    def unreadable(self, user: int, error: KtaskfsError) -> None:
        """A text could not be made for ``user``."""
        for observer in self.observers:
            observer(user, error)

    def made(self, ino: int, text: bytes, version: int) -> TextSnapshot:
        """The snapshot of a new text."""
        mark = hash(text)
        known, look = self._known.get(ino, (None, Look(0, 0)))
        if known != mark:
            look = Look(len(text), max(self._now_ns(), look.changed_ns + 1))
            self._known[ino] = mark, look
            if len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
        self._known.move_to_end(ino)
        return TextSnapshot(text, version, look.changed_ns)

    def last(self, ino: int) -> Look | None:
        """The last text of the file, if it is known."""
        known = self._known.get(ino)
        return None if known is None else known[1]

    def looked(self, ino: int, caller: Caller, snapshot: TextSnapshot) -> None:
        """Keep the text whose size ``caller`` got, for its next open."""
        self.take_look(ino, caller)
        self._looks[ino, caller.uid, caller.pid] = snapshot
        self._looks_size += len(snapshot.text)
        while self._looks_size > LOOKS_SIZE or len(self._looks) > LOOKS_MAX:
            _, dropped = self._looks.popitem(last=False)
            self._looks_size -= len(dropped.text)

    def take_look(self, ino: int, caller: Caller) -> TextSnapshot | None:
        """The last text looked up by ``caller``, if not yet opened."""
        snapshot = self._looks.pop((ino, caller.uid, caller.pid), None)
        if snapshot is not None:
            self._looks_size -= len(snapshot.text)
        return snapshot

    def opened(self, ino: int, caller: Caller, snapshot: TextSnapshot) -> None:
        """``caller`` has opened the file, or reads it again from the start: an open of it has ``snapshot``."""
        self._opened[ino, caller.uid, caller.pid] = snapshot

    def last_opened(self, ino: int, caller: Caller) -> TextSnapshot | None:
        """The text of the last open by ``caller``, if not yet closed."""
        return self._opened.get((ino, caller.uid, caller.pid))

    def closed(self, ino: int, caller: Caller, snapshot: TextSnapshot) -> None:
        """An open no longer has ``snapshot``."""
        key = ino, caller.uid, caller.pid
        if self._opened.get(key) is snapshot:
            del self._opened[key]
