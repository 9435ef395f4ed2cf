"""Files whose writes start work: each opening keeps its opener, with root and working directory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ktaskfs.control.privilege import CAP_SYS_ADMIN, find_caller
from ktaskfs.errors import KtaskfsError, TargetError
from ktaskfs.vfs import Caller, File, OpenFile, TextFile
from ktaskfs.vfs.inode import wants_write

if TYPE_CHECKING:
    from ktaskfs.control.command_log import CommandLog
    from ktaskfs.control.limits import Limits
    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.vfs import Attributes

Render = Callable[[Caller], str]
Run = Callable[["CallerProcess", str], Awaitable[str | None]]

POWERLESS_ROOT: Final = -1
"""The user in whose name root without rights holds openings: it may not take what is kept for root."""


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

    __slots__ = ("_commands", "_limits", "_log")

    def __init__(self, ino: int, attributes: Attributes, commands: Commands, log: CommandLog, limits: Limits) -> None:
        super().__init__(ino, attributes)
        self._commands = commands
        self._log = log
        self._limits = limits

    async def open(self, caller: Caller, flags: int) -> OpenFile:
        commands, texts = self._commands, self._limits.texts
        if not wants_write(flags):
            return await TextFile(self.ino, self.attributes(), commands.text, texts=texts).open(caller, flags)
        try:
            opener = self._enter(caller)
        except KtaskfsError as error:
            self._log.refused(commands.file, caller, "(open)", error)
            raise

        async def write(_: Caller, text: str) -> str | None:
            return await commands.run(_copy(opener), text)

        write_recorded, refused = self._log.keeping(commands.file, write)
        file = TextFile(self.ino, self.attributes(), commands.text, write_recorded, refused=refused, texts=texts)
        try:
            return _OpenCommandFile(await file.open(caller, flags), lambda: self._leave(opener))
        except BaseException:
            self._leave(opener)
            raise

    def _enter(self, caller: Caller) -> CallerProcess:
        """The process that opens the file, which ``_leave`` closes. Raises TooManyOpen, and as ``find_caller``."""
        opener = find_caller(caller)
        try:
            self._limits.openings.take(_holder(opener))
        except KtaskfsError:
            opener.close()
            raise
        return opener

    def _leave(self, opener: CallerProcess) -> None:
        self._limits.openings.give_back(_holder(opener))
        opener.close()


def _holder(opener: CallerProcess) -> int:
    identity = opener.identity
    return identity.uid if identity.uid or identity.effective & CAP_SYS_ADMIN else POWERLESS_ROOT


class _OpenCommandFile(OpenFile):
    """An opened text file; ``leave`` is called at the end."""

    __slots__ = ("_file", "_leave")

    def __init__(self, file: OpenFile, leave: Callable[[], None]) -> None:
        self._file = file
        self._leave = leave

    async def read(self, offset: int, size: int) -> bytes:
        return await self._file.read(offset, size)

    async def write(self, offset: int, data: bytes) -> int:
        return await self._file.write(offset, data)

    def poll(self, wake: Callable[[], None] | None) -> int:
        return self._file.poll(wake)

    def release(self) -> None:
        self._file.release()
        self._leave()


def _copy(opener: CallerProcess) -> CallerProcess:
    """``opener`` with descriptors of its own. Raises TargetError when there are none left."""
    try:
        return opener.copy()
    except OSError as error:
        raise TargetError.from_os(error, "keep your root and working directory") from error
