"""Commands on the standard input of ``ktaskfs run --json``, for control by another program, perhaps remote."""

from __future__ import annotations

import errno
import json
import os
import re
import select
import stat
from typing import TYPE_CHECKING, Final

from ktaskfs.cli.arguments import VERBS
from ktaskfs.errors import InvalidValue, KtaskfsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ktaskfs.cli.mounted import Mounted

DETACH: Final = "detach"
"""The command that ends the program and leaves the tasks."""
ASSIGNMENT: Final = re.compile(r"([a-z_]+)=(.*)", re.DOTALL)
SHOWN: Final = 200
"""Maximum characters of an unknown command in the answer to it."""
LINE_MOST: Final = 4096
"""Maximum bytes of a command."""


class Orders:
    """Lines from a descriptor, as they come. Its end is no command: a connection may be lost."""

    def __init__(self, fd: int | None) -> None:
        self.fd = fd
        """The descriptor to poll for more, or None after the end."""
        self.leave = False
        """Whether DETACH has come."""
        self._rest = b""

    @classmethod
    def of_standard_input(cls) -> Orders:
        """Standard input if it is a pipe or a socket: a terminal is for a person, a file for the loop that reads it."""
        try:
            mode = os.fstat(0).st_mode
        except OSError:  # closed
            return cls(None)
        return cls(0 if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None)

    def take(self) -> Iterator[str]:
        """The lines that have come since the last call, up to DETACH; does not wait for more."""
        while self.fd is not None and not self.leave and _is_readable(self.fd):
            try:
                piece = os.read(self.fd, 1 << 16)
            except OSError:  # a socket that was reset
                piece = b""
            if not piece:  # a line without a newline was cut off
                self.fd = None
                return
            *lines, self._rest = (self._rest + piece).split(b"\n")
            if len(self._rest) > LINE_MOST:
                lines, self._rest = [*lines, self._rest], b""
            for text in (line.decode(errors="backslashreplace").strip() for line in lines):
                self.leave = self.leave or text == DETACH
                if text and not self.leave:
                    yield text


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def obey(mounted: Mounted, line: str, names: Sequence[str]) -> Iterator[str]:
    """Carry out a command for each task. Yields a JSON object for each, or a single one for an unknown command."""
    try:
        file, text = _meaning(line)
    except InvalidValue as error:
        yield _answer(None, line[:SHOWN], error)
        return
    for name in names:
        refusal = None
        try:
            mounted.write(f"tasks/{name}/{file}", text)
        except KtaskfsError as error:
            refusal = error
        yield _answer(name, line, refusal)


def _meaning(line: str) -> tuple[str, str]:
    """The file of a task, and what to write to it. Raises InvalidValue."""
    if line in VERBS:
        return "control", line
    match = ASSIGNMENT.fullmatch(line)
    if match is None or match[1] == "control":
        raise InvalidValue(f"{line[:SHOWN]!r} is not a command: write one of {', '.join(VERBS)}, {DETACH}, KEY=VALUE")
    return match[1], match[2]


def _answer(name: str | None, line: str, error: KtaskfsError | None) -> str:
    number = None if error is None else error.errno or errno.EINVAL
    return json.dumps({"name": name, "command": line, "errno": number, "error": error and error.message})
