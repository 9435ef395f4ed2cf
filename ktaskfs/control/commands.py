"""Files whose writes start work: each opening keeps who opened it, root and working directory included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import KtaskfsError, NotPermitted, TargetError, TooManyOpen
from ktaskfs.host import credentials
from ktaskfs.vfs import Caller, File, OpenFile, TextFile
from ktaskfs.vfs.inode import wants_write

if TYPE_CHECKING:
    from ktaskfs.control.command_log import CommandLog
    from ktaskfs.vfs import Attributes

Render = Callable[[Caller], str]
Command = Callable[[credentials.CallerProcess, str], Awaitable[str | None]]

OPENINGS_MAX: Final = 256
"""Command files that one user may have open for writing, root excepted, who has other ways to stop a daemon. Each takes
two or three descriptors of this process, and no user may take them all."""


class Writers:
    """Takes down who opens a command file for writing."""

    def __init__(self) -> None:
        self._openings: Counter[int] = Counter()

    def enter(self, caller: Caller) -> credentials.CallerProcess:
        """Who the process behind a request is; ``leave`` when its descriptor is closed.

        Raises NotPermitted for one that this daemon cannot see, TooManyOpen, TargetError.
        """
        if caller.uid and self._openings[caller.uid] >= OPENINGS_MAX:
            raise TooManyOpen(f"you have {OPENINGS_MAX} control files open for writing, and may not have more")
        if not caller.pid:
            text = "your process is in a pid namespace that the daemon cannot see: write from outside of it"
            raise NotPermitted(text)
        who = credentials.read_caller(caller.pid, caller.uid, caller.gid)
        self._openings[caller.uid] += 1
        return who

    def leave(self, who: credentials.CallerProcess) -> None:
        """Close what ``who`` holds."""
        uid = who.identity.uid
        self._openings[uid] -= 1
        if not self._openings[uid]:
            del self._openings[uid]
        who.close()


class CommandFile(File):
    """A text file whose commands run as the process that opened it.

    What that process is, is taken while its open(2) waits for the answer: until then its pid cannot be another's.
    ``command`` gets a CallerProcess of its own for each write, and closes it.
    """

    __slots__ = ("_command", "_file", "_log", "_text", "_writers")

    def __init__(
        self,
        ino: int,
        attributes: Attributes,
        text: Render,
        command: Command,
        *,
        file: str,
        log: CommandLog,
        writers: Writers,
    ) -> None:
        super().__init__(ino, attributes)
        self._text = text
        self._command = command
        self._file = file
        self._log = log
        self._writers = writers

    async def open(self, caller: Caller, flags: int) -> OpenFile:
        if not wants_write(flags):
            return await TextFile(self.ino, self.attributes(), self._text).open(caller, flags)
        try:
            who = self._writers.enter(caller)
        except KtaskfsError as error:
            self._log.refused(self._file, caller, "(open)", error)
            raise
        command = self._command

        async def write(_: Caller, text: str) -> str | None:
            return await command(_copy(who), text)

        def refused(opener: Caller, text: str, error: KtaskfsError) -> None:
            self._log.refused(self._file, opener, text, error)

        file = TextFile(
            self.ino, self.attributes(), self._text, self._log.recording(self._file, write), refused=refused
        )
        try:
            return _Opened(await file.open(caller, flags), who, self._writers)
        except BaseException:
            self._writers.leave(who)
            raise


class _Opened(OpenFile):
    """An opened text file that lets go of its opener at the end."""

    __slots__ = ("_file", "_who", "_writers")

    def __init__(self, file: OpenFile, who: credentials.CallerProcess, writers: Writers) -> None:
        self._file = file
        self._who = who
        self._writers = writers

    async def read(self, offset: int, size: int) -> bytes:
        return await self._file.read(offset, size)

    async def write(self, offset: int, data: bytes) -> int:
        return await self._file.write(offset, data)

    def poll(self, wake: Callable[[], None] | None) -> int:
        return self._file.poll(wake)

    def release(self) -> None:
        self._file.release()
        self._writers.leave(self._who)


def _copy(who: credentials.CallerProcess) -> credentials.CallerProcess:
    """``who`` with descriptors of its own. Raises TargetError when there are none left."""
    try:
        return who.copy()
    except OSError as error:
        raise TargetError.from_os(error, "keep your root and working directory") from error
