"""The outcome of each user's last commands: ``info/last_cmd_status`` and ``info/error_log``."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import KtaskfsError, SpecError, TaskForgotten
from ktaskfs.quota import ROOT
from ktaskfs.units import printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from ktaskfs.vfs import Caller

KEPT: Final = 8
"""Refused writes kept for each user."""
USERS_MAX: Final = 4096
"""Maximum users; the user who wrote least recently is dropped first."""
BYTES_MAX: Final = 4 << 20
"""Maximum bytes of all users except root, who is never dropped."""
SHOWN_MAX: Final = 4096
"""Maximum characters of a command, and of a message."""


@dataclass
class _UserLog:
    """One user's commands."""

    status: str = "ok"
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))
    size: int = 0
    """Their bytes, at the last count."""


class CommandLog:
    """Stores for each uid the result of the last write, and the last refused ones."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._users: OrderedDict[int, _UserLog] = OrderedDict()
        self._size = 0

    def status(self, caller: Caller) -> str:
        """``ok``, or why the caller's last write failed."""
        return self._users.get(caller.uid, _UserLog()).status + "\n"

    def errors(self, caller: Caller) -> str:
        """The caller's refused writes, oldest first."""
        return "".join(self._users.get(caller.uid, _UserLog()).errors)

    def clear(self, caller: Caller) -> None:
        """Forget the caller's refused writes."""
        self._of(caller.uid).errors.clear()
        self._weigh(caller.uid)

    def succeeded(self, caller: Caller) -> None:
        """Record a successful write."""
        self._of(caller.uid).status = "ok"

    def refused(self, file: str, caller: Caller, text: str, error: KtaskfsError) -> None:
        """Record a refused write of ``text`` to ``file``."""
        log = self._of(caller.uid)
        log.status = f"{file}: {error.errname}: {printable(error.message[:SHOWN_MAX])}"
        line, start, end = (error.line, error.start, error.end) if isinstance(error, SpecError) else (text, 0, 0)
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self._now()))
        line = line[:SHOWN_MAX]
        entry = f"[{when}] {log.status}\n  Command: {printable(line)}\n"
        if end > start and start < SHOWN_MAX:
            before, token = printable(line[:start]), printable(line[start:end])
            entry += " " * len(f"  Command: {before}") + "^" * max(1, len(token)) + "\n"
        log.errors.append(entry)
        self._weigh(caller.uid)

    @contextlib.contextmanager
    def refusals(self, file: str, caller: Caller, text: str) -> Iterator[None]:
        """A context for a write of ``text`` to ``file``: its KtaskfsError is recorded."""
        try:
            yield
        except KtaskfsError as error:
            self.refused(file, caller, text, error)
            raise

    def refused_opening(self, uid: int, error: KtaskfsError) -> None:
        """Record that a user could not open or reread a file, unless that is only because its task was removed.

        A program that reads the files of all tasks would otherwise hide the reason of the user's last refused command.
        """
        if isinstance(error, TaskForgotten):
            return
        self._of(uid).status = f"open: {error.errname}: {error.message}"
        self._weigh(uid)

    def _of(self, uid: int) -> _UserLog:
        log = self._users.setdefault(uid, _UserLog())
        self._users.move_to_end(uid)
        if len(self._users) > USERS_MAX:
            self._forget_one()
        return log

    def _weigh(self, uid: int) -> None:
        """Update the bytes of a user's log, and drop others until the total fits."""
        log = self._users[uid]
        if uid != ROOT:
            self._size -= log.size
            log.size = sum(map(sys.getsizeof, (log.status, *log.errors)))
            self._size += log.size
        while self._size > BYTES_MAX:
            self._forget_one()

    def _forget_one(self) -> None:
        uid = next(each for each in self._users if each != ROOT)
        self._size -= self._users.pop(uid).size

    def keeping(
        self, file: str, write: Callable[[Caller, str], Awaitable[str | None]]
    ) -> tuple[Callable[[Caller, str], Awaitable[str | None]], Callable[[Caller, str, KtaskfsError], None]]:
        """``write`` that records its outcome, and a function that records a write of ``file`` that never reaches it."""

        async def recorded(caller: Caller, text: str) -> str | None:
            with self.refusals(file, caller, text):
                reply = await write(caller, text)
            self.succeeded(caller)
            return reply

        return recorded, lambda caller, text, error: self.refused(file, caller, text, error)
