"""Files whose writes start work: each opening keeps its opener, with root and working directory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import KtaskfsError, NotPermitted, TargetError, TooManyOpen
from ktaskfs.host import credentials
from ktaskfs.vfs import Caller, File, OpenFile, TextFile
from ktaskfs.vfs.inode import wants_write

if TYPE_CHECKING:
    from ktaskfs.control.command_log import CommandLog
    from ktaskfs.vfs import Attributes

Render = Callable[[Caller], str]
Run = Callable[[credentials.CallerProcess, str], Awaitable[str | None]]

OPENINGS_MAX: Final = 256
"""Command files that one user may have open for writing. Each takes two or three descriptors of this process, and no
user may take them all, except root, who has other ways to stop a daemon."""


class Openings:
    """Identifies and counts the processes that have a command file open for writing."""

    def __init__(self) -> None:
        self._openings: Counter[int] = Counter()

    def enter(self, caller: Caller) -> credentials.CallerProcess:
        """The process behind a request; ``leave`` is called when its descriptor is closed.

        Raises NotPermitted for a process that this daemon cannot see, TooManyOpen, TargetError.
        """
        if caller.uid and self._openings[caller.uid] >= OPENINGS_MAX:
            raise TooManyOpen(f"you have {OPENINGS_MAX} control files open for writing, and may not have more")
        if not caller.pid:
            text = "your process is in a pid namespace that the daemon cannot see: write from outside of it"
            raise NotPermitted(text)
        opener = credentials.read_caller(caller.pid, caller.uid, caller.gid)
        self._openings[caller.uid] += 1
        return opener

    def leave(self, opener: credentials.CallerProcess) -> None:
        """Close the descriptors of ``opener``."""
        uid = opener.identity.uid
        self._openings[uid] -= 1
        if not self._openings[uid]:
            del self._openings[uid]
        opener.close()


@dataclass(frozen=True, slots=True)
class Commands:
    """What a command file does.

    file: its path in the mount, for the log.
    text: what it shows.
    run:  carries out a command. It gets a CallerProcess of its own for each write, and closes it.
    """

    file: str
    text: Render
    run: Run


class CommandFile(File):
    """A text file whose commands run as the process that opened it.

    That process is identified while its open(2) waits for the answer: until then its pid cannot be another's.
    """

    __slots__ = ("_commands", "_log", "_openings")

    def __init__(
        self, ino: int, attributes: Attributes, commands: Commands, log: CommandLog, openings: Openings
    ) -> None:
        super().__init__(ino, attributes)
        self._commands = commands
        self._log = log
        self._openings = openings

    async def open(self, caller: Caller, flags: int) -> OpenFile:
        commands = self._commands
        if not wants_write(flags):
            return await TextFile(self.ino, self.attributes(), commands.text).open(caller, flags)
        try:
            opener = self._openings.enter(caller)
        except KtaskfsError as error:
            self._log.refused(commands.file, caller, "(open)", error)
            raise

        async def write(_: Caller, text: str) -> str | None:
            return await commands.run(_copy(opener), text)

        write_recorded, refused = self._log.keeping(commands.file, write)
        file = TextFile(self.ino, self.attributes(), commands.text, write_recorded, refused=refused)
        try:
            return _OpenCommandFile(await file.open(caller, flags), opener, self._openings)
        except BaseException:
            self._openings.leave(opener)
            raise


class _OpenCommandFile(OpenFile):
    """An opened text file that lets go of its opener at the end."""

    __slots__ = ("_file", "_opener", "_openings")

    def __init__(self, file: OpenFile, opener: credentials.CallerProcess, openings: Openings) -> None:
        self._file = file
        self._opener = opener
        self._openings = openings

    async def read(self, offset: int, size: int) -> bytes:
        return await self._file.read(offset, size)

    async def write(self, offset: int, data: bytes) -> int:
        return await self._file.write(offset, data)

    def poll(self, wake: Callable[[], None] | None) -> int:
        return self._file.poll(wake)

    def release(self) -> None:
        self._file.release()
        self._openings.leave(self._opener)


def _copy(opener: credentials.CallerProcess) -> credentials.CallerProcess:
    """``opener`` with descriptors of its own. Raises TargetError when there are none left."""
    try:
        return opener.copy()
    except OSError as error:
        raise TargetError.from_os(error, "keep your root and working directory") from error
