# Copyright (c) 2026, The ktaskfs authors
# SPDX-License-Identifier: MIT
"""Reads and writes the files of a mounted ktaskfs for the modules. Refusals have the daemon's message."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

AWAY = (errno.ENOTCONN, errno.ESTALE, errno.ECONNABORTED)
"""The errnos of a file whose daemon is dead."""
GONE = (errno.ENOENT, errno.ENODEV)
"""The errnos of a file whose task was removed."""
ABSENT = "absent"
"""The state of a task that does not exist."""
PATIENCE = 10.0
"""Seconds to wait while the daemon restarts."""
PAUSE = 0.1
"""Seconds between two tries."""
LONGEST_POLL = 5.0
"""Seconds after which the module reads a state again, even if poll(2) has reported no change."""
READ_SIZE = 1 << 16
REFUSAL = re.compile(r"^\[[^]]*\] (?P<file>.*?): (?P<errname>[A-Z0-9]+): (?P<message>.*)$", re.MULTILINE)
"""The first line of an entry of ``info/error_log``."""


class Refused(Exception):
    """The mount refused a command, or cannot be used; ``number`` is the errno."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number

    @property
    def name(self) -> str:
        """The name of the errno, such as ENOSPC."""
        return errno.errorcode.get(self.number, str(self.number))


class NotMounted(Refused):
    """No ktaskfs is mounted."""


def file_of(name: str, file: str) -> str:
    """Returns the path of a task's file, below the mount."""
    return f"tasks/{name}/{file}"


class Mounted:
    """A mount at ``path``. All methods raise Refused."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._was_there = False

    def is_there(self) -> bool:
        """Whether a ktaskfs is mounted. Waits while the daemon restarts, not for a mount that is gone."""
        self._was_there = False
        try:
            self._patiently(self._look)
        except Refused as error:
            if error.number != errno.ENOENT:
                raise
            return False
        self._was_there = True
        return True

    def _look(self) -> None:
        os.stat(f"{self.path}/tasks/control")

    def require(self) -> None:
        """Raise NotMounted if no ktaskfs is mounted."""
        if not self.is_there():
            raise NotMounted(f"no ktaskfs is mounted on {self.path}", errno.ENOENT)

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Returns the result of ``call``. Waits until a daemon answers."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except OSError as error:
                number = error.errno or errno.EIO
                self._was_there = self._was_there or number in AWAY
                if not self._is_away(number) or time.monotonic() > end:
                    what = (
                        f"the daemon of {self.path} does not answer" if number in AWAY else error.filename or self.path
                    )
                    raise Refused(f"{what}: {error.strerror}", number) from error
            time.sleep(PAUSE)

    def _is_away(self, number: int) -> bool:
        """Whether the daemon may be restarting: it removes the dead mount and mounts again."""
        if number != errno.ENOENT or not self._was_there:
            return number in AWAY
        try:
            self._look()
        except OSError:
            return True
        return False

    def read(self, file: str) -> str:
        """Returns the text of a file that is not a stream."""
        return str(self._patiently(lambda: self._read(file)))

    def _read(self, file: str) -> str:
        fd = os.open(f"{self.path}/{file}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _text(fd)
        finally:
            _let_go(fd)

    def write(self, file: str, command: str) -> str:
        """Write one command; returns the text of the file afterwards, if it is readable."""
        fd: int = self._patiently(lambda: self._open_to_write(file))
        try:
            os.write(fd, os.fsencode(f"{command}\n"))  # the newline says that the command is whole
            return _text(fd) if file == "tasks/control" else ""
        except OSError as error:
            number = error.errno or errno.EIO
            raise Refused(self._words(file, number, command), number) from error
        finally:
            _let_go(fd)

    def _open_to_write(self, file: str) -> int:
        flags = os.O_RDWR if file == "tasks/control" else os.O_WRONLY
        return os.open(f"{self.path}/{file}", flags | os.O_CLOEXEC)

    def _words(self, file: str, number: int, command: str) -> str:
        """Returns the daemon's message for a refusal. Other commands of the same user may have failed since."""
        try:
            log = self._read("info/error_log")
        except OSError:  # the errno is the answer, the message only helps
            log = ""
        found = [
            entry["message"]
            for entry in REFUSAL.finditer(log)
            if (entry["file"], entry["errname"]) == (file, errno.errorcode.get(number))
            and log[entry.end() :].lstrip("\n").partition("\n")[0].partition("Command: ")[2] in command
        ]
        if not found and number in AWAY:  # ESTALE is also the errno of a changed target
            return f"the daemon of {self.path} ended during the command, which may have taken effect"
        return found[-1] if found else f"{file}: {os.strerror(number)}"

    def start(self, spec: dict[str, str]) -> str:
        """Start a task; returns its name."""
        return self.write("tasks/control", json.dumps(spec)).strip()

    def forget(self, name: str) -> None:
        """Remove a task that has ended."""
        self._patiently(lambda: os.rmdir(f"{self.path}/tasks/{name}"))

    def state(self, name: str) -> str:
        """Returns the state of a task, or ABSENT."""
        try:
            return self.read(file_of(name, "state")).strip()
        except Refused as error:
            if error.number not in GONE:
                raise
            self.require()
            return ABSENT

    def is_own(self, name: str) -> bool:
        """Whether a task is the user's, or does not exist."""
        try:
            return os.stat(f"{self.path}/tasks/{name}").st_uid == os.geteuid()
        except OSError as error:  # the next call says what is wrong with the mount
            return error.errno != errno.EACCES

    def figures(self, name: str) -> dict[str, Any]:
        """Returns the figures of a task; empty if the task does not exist."""
        try:
            figures: dict[str, Any] = json.loads(self.read(file_of(name, "stat.json")))
        except Refused as error:
            if error.number not in GONE:
                raise
            return {}
        return figures

    def wait_while(self, name: str, states: tuple[str, ...], end: float) -> str:
        """Wait until a task leaves these states, or until ``end`` by time.monotonic(); returns its state."""
        while True:
            state = self._wait_for_change(name, states, end)
            if state not in states or time.monotonic() >= end:
                return state

    def _wait_for_change(self, name: str, states: tuple[str, ...], end: float) -> str:
        """Follow an open file ``state`` while its daemon lives."""
        state = self.state(name)
        try:
            fd = os.open(f"{self.path}/{file_of(name, 'state')}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # the task or the daemon is gone: the next look says which
            return self.state(name)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            while (state := _text(fd).strip()) in states and (left := end - time.monotonic()) > 0:
                poll.poll(1000 * min(left, LONGEST_POLL))
        except OSError:
            return self.state(name)
        finally:
            _let_go(fd)
        return state


def _let_go(fd: int) -> None:
    """Close a file of the mount. The descriptor is free even if the daemon that opened it has died (ESTALE)."""
    with contextlib.suppress(OSError):
        os.close(fd)


def _text(fd: int) -> str:
    """Returns the whole current text of an open file."""
    pieces: list[bytes] = []
    at = 0
    while piece := os.pread(fd, READ_SIZE, at):
        pieces.append(piece)
        at += len(piece)
    return b"".join(pieces).decode(errors="surrogateescape")


def table(text: str) -> list[dict[str, str]]:
    """Returns the rows of a table with a header, by column. The last column may contain blanks."""
    header, *lines = text.splitlines() or [""]
    names = header.split()
    return [dict(zip(names, line.split(None, len(names) - 1), strict=False)) for line in lines]
