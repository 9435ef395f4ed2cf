"""Files whose writes start work: each open keeps the opener, with root and working directory."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.control.privilege import CAP_SYS_ADMIN
from ktaskfs.vfs import Caller, File, Look, OpenFile, TextFile
from ktaskfs.vfs.inode import wants_write

if TYPE_CHECKING:
    from ktaskfs.control.callers import Callers
    from ktaskfs.control.command_log import CommandLog
    from ktaskfs.control.limits import Limits
    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.vfs import Attributes

Render = Callable[[Caller], str]
Run = Callable[["CallerProcess", str], Awaitable[str | None]]

OPENER_SIZE: Final = 4096
GROUP_SIZE: Final = 4
"""Bytes for the opener of a command file, and for each of the opener's groups; about their size in Python."""
POWERLESS_ROOT: Final = -1
"""The quota user of root without capabilities, which must not use root's reserve."""


class Commands(NamedTuple):
    """The contents of a command file, and its reaction to a command.

    file: its path in the mount, for the log. text: what it shows.
    run:  carries out a command. It gets a CallerProcess of its own for each write, and closes it.
    """

    file: str
    text: Render
    run: Run


class CommandFile(File):
    """A text file whose commands run as the process that opened it.

    That process is identified while its open(2) waits for the answer, so its pid cannot be reused.
    """

    __slots__ = ("_callers", "_commands", "_limits", "_log")

    def __init__(
        self,
        ino: int,
        attributes: Attributes,
        commands: Commands,
        *,
        log: CommandLog,
        limits: Limits,
        callers: Callers,
    ) -> None:
        super().__init__(ino, attributes)
        self._commands = commands
        self._log = log
        self._limits = limits
        self._callers = callers

    def _usage(self) -> TextFile:
        return TextFile(self.ino, self.attributes(), self._commands.text, texts=self._limits.texts)

    async def look(self, caller: Caller, *, anew: bool) -> Look:
        return await self._usage().look(caller, anew=anew)

    async def open(self, caller: Caller, flags: int) -> OpenFile:
        commands, texts = self._commands, self._limits.texts
        if not wants_write(flags):
            return await self._usage().open(caller, flags)
        with self._log.refusals(commands.file, caller, "(open)"):
            opener = await self._enter(caller)

        async def write(_: Caller, text: str) -> str | None:
            return await commands.run(self._callers.copy(opener), text)

        write_recorded, refused = self._log.keeping(commands.file, write)
        file = TextFile(
            self.ino, self.attributes(), commands.text, write_recorded, refused=refused, texts=texts, json=True
        )
        try:
            return _OpenCommandFile(await file.open(caller, flags), lambda: self._leave(opener))
        except BaseException:
            self._leave(opener)
            raise

    async def _enter(self, caller: Caller) -> CallerProcess:
        """The process that opens the file, which ``_leave`` closes.

        Raises TooManyOpen, TooMuchText, and as ``Callers.find``.
        """
        opener = await self._callers.find(caller)
        with contextlib.ExitStack() as undo:
            undo.callback(opener.close)
            self._limits.openings.take(_holder(opener))
            undo.callback(self._limits.openings.give_back, _holder(opener))
            self._limits.memory.take(_holder(opener), _size(opener))
            undo.pop_all()
        return opener

    def _leave(self, opener: CallerProcess) -> None:
        self._limits.memory.give_back(_holder(opener), _size(opener))
        self._limits.openings.give_back(_holder(opener))
        opener.close()


def _holder(opener: CallerProcess) -> int:
    identity = opener.identity
    return identity.uid if identity.uid or identity.effective & CAP_SYS_ADMIN else POWERLESS_ROOT


def _size(opener: CallerProcess) -> int:
    return OPENER_SIZE + GROUP_SIZE * len(opener.identity.groups)


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

    @property
    def pending(self) -> bool:
        return self._file.pending

    async def closed(self, *, last: bool) -> None:
        await self._file.closed(last=last)

    def poll(self, wake: Callable[[], None] | None) -> int:
        return self._file.poll(wake)

    def release(self) -> None:
        self._file.release()
        self._leave()
