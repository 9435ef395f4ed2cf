"""How each user's last commands ended: ``info/last_cmd_status`` and ``info/error_log``."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import KtaskfsError, SpecError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ktaskfs.vfs import Caller

KEPT: Final = 8
"""Refused writes kept for each user."""
USERS_MAX: Final = 4096
"""Users remembered; the user who wrote least recently is forgotten first."""
SHOWN_MAX: Final = 4096
"""Characters of a command, and of a message, that are kept."""


@dataclass
class _UserLog:
    """One user's commands."""

    status: str = "ok"
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))


class CommandLog:
    """Remembers for each uid how the last write ended, and the last refused ones."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._users: OrderedDict[int, _UserLog] = OrderedDict()

    def status(self, caller: Caller) -> str:
        """``ok``, or why the caller's last write failed."""
        return self._users.get(caller.uid, _UserLog()).status + "\n"

    def errors(self, caller: Caller) -> str:
        """The caller's refused writes, oldest first."""
        return "".join(self._users.get(caller.uid, _UserLog()).errors)

    def clear(self, caller: Caller) -> None:
        """Forget the caller's refused writes."""
        self._of(caller.uid).errors.clear()

    def succeeded(self, caller: Caller) -> None:
        """Note a write that was carried out."""
        self._of(caller.uid).status = "ok"

    def refused(self, file: str, caller: Caller, text: str, error: KtaskfsError) -> None:
        """Note a write of ``text`` to ``file`` that was refused."""
        log = self._of(caller.uid)
        log.status = f"{file}: {error.errname}: {_printable(error.message[:SHOWN_MAX])}"
        line, start, end = (error.line, error.start, error.end) if isinstance(error, SpecError) else (text, 0, 0)
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self._now()))
        entry = f"[{when}] {log.status}\n  Command: {_printable(line[:SHOWN_MAX])}\n"
        if end > start and start < SHOWN_MAX:
            entry += " " * (len("  Command: ") + start) + "^" * max(1, min(end, SHOWN_MAX) - start) + "\n"
        log.errors.append(entry)

    def refused_opening(self, uid: int, error: KtaskfsError) -> None:
        """Note that a user could not open a file, or read it anew."""
        self._of(uid).status = f"open: {error.errname}: {error.message}"

    def _of(self, uid: int) -> _UserLog:
        log = self._users.setdefault(uid, _UserLog())
        self._users.move_to_end(uid)
        if len(self._users) > USERS_MAX:
            self._users.popitem(last=False)
        return log

    def keeping(
        self, file: str, write: Callable[[Caller, str], Awaitable[str | None]]
    ) -> tuple[Callable[[Caller, str], Awaitable[str | None]], Callable[[Caller, str, KtaskfsError], None]]:
        """``write`` with its outcome noted, and a function that notes a write of ``file`` that never reaches it."""

        async def recorded(caller: Caller, text: str) -> str | None:
            try:
                reply = await write(caller, text)
            except KtaskfsError as error:
                self.refused(file, caller, text, error)
                raise
            self.succeeded(caller)
            return reply

        return recorded, lambda caller, text, error: self.refused(file, caller, text, error)


def _printable(text: str) -> str:
    """``text`` with ``?`` for each character that cannot be printed. The length stays, and a caret under its token."""
    return "".join(each if each.isprintable() else "?" for each in text)
