"""Text files: a snapshot for every open, commands by write(2), replies on the same descriptor."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.errors import KtaskfsError
from ktaskfs.user_threads import NoThread, in_thread
from ktaskfs.vfs.change import CHANGED, READABLE, WRITABLE, Change
from ktaskfs.vfs.inode import NEW_TEXT_SIZE, Attributes, Caller, File, Look, OpenFile, wants_read, wants_write
from ktaskfs.vfs.open_texts import OpenTexts
from ktaskfs.vfs.opener import Opener
from ktaskfs.vfs.pieces import COMMAND_MAX, Pieces
from ktaskfs.vfs.refusals import AccessDenied, BadWrite, Incomplete

if TYPE_CHECKING:
    from ktaskfs.vfs.open_texts import TextSnapshot

REPLY_MAX: Final = 64 * 1024
"""Maximum bytes of replies of a descriptor; the oldest are dropped first."""
PATIENCE: Final = 0.9
"""Seconds for a question about the opener's process, so that a write or a close is answered within about a second."""

EXEC_PATIENCE: Final = 0.5
"""Seconds for the question whether the opener is being killed. The answer waits for an execve(2) of the opener
(exec_update_lock in the kernel), and execve(2) for this close, if the descriptor is close-on-exec."""

Render = Callable[[Caller], str | bytes | Awaitable[str | bytes]]
Write = Callable[[Caller, str], Awaitable[str | None]]
Refused = Callable[[Caller, str, KtaskfsError], None]


class TextFile(File):
    """A file of text, made by ``render`` for each lookup, and for each open without a lookup.

    ``write`` gets the stripped text of one command; its exception is the error of the write(2) that completed the
    command, or of the close(2). Its result is a reply, which a descriptor open for reading and writing reads instead of
    the file. Text and bytes are converted with the filesystem encoding. ``change`` is reported by poll(2). ``refused``
    is called for a write that never reaches ``write``, with the legible part of the command. ``texts`` limits the
    memory of opens: beyond it an open(2), or a read at offset 0, fails. ``may_be_empty``: an empty command is valid.
    ``json``: a command may be JSON, of several lines.
    """

    __slots__ = ("change", "json", "may_be_empty", "refused", "render", "texts", "write")

    def __init__(
        self,
        ino: int,
        attributes: Attributes,
        render: Render | None,
        write: Write | None = None,
        *,
        change: Change | None = None,
        refused: Refused | None = None,
        texts: OpenTexts | None = None,
        may_be_empty: bool = False,
        json: bool = False,
    ) -> None:
        super().__init__(ino, attributes)
        self.json = json
        self.may_be_empty = may_be_empty
        self.texts = texts or OpenTexts()
        self.render = render
        self.write = write
        self.change = change
        self.refused = refused

    async def make(self, caller: Caller) -> TextSnapshot:
        """The current text. Raises AccessDenied, and the errors of ``render``."""
        if self.render is None:
            raise AccessDenied("this file cannot be read")
        # Take the count first, so that a change during the rendering wakes the reader again.
        version = 0 if self.change is None else self.change.count
        text = self.render(caller)
        if not isinstance(text, (str, bytes)):
            text = await text
        return self.texts.made(self.ino, os.fsencode(text) if isinstance(text, str) else text, version)

    async def make_to_read(self, caller: Caller) -> TextSnapshot:
        """``make`` for a reader; tells an error to the observers of ``texts``. Raises the errors of ``make``."""
        try:
            return await self.make(caller)
        except KtaskfsError as error:
            self.texts.unreadable(caller.uid, error)
            raise

    async def look(self, caller: Caller, *, anew: bool) -> Look:
        attributes = self.attributes()
        if self.render is None:
            return Look(0, attributes.time_ns)
        if not _may_read(attributes, caller):
            return Look(NEW_TEXT_SIZE, attributes.time_ns)
        if caller.pid in self.texts.not_readers:
            return self.texts.last(self.ino) or Look(NEW_TEXT_SIZE, attributes.time_ns)
        snapshot = None if anew else self.texts.last_opened(self.ino, caller)
        if snapshot is None:
            snapshot = await self.make(caller)
            self.texts.looked(self.ino, caller, snapshot)
        return Look(len(snapshot.text), snapshot.changed_ns)

    async def open(self, caller: Caller, flags: int) -> OpenText:
        # The mode bits do not restrict root; sysfs refuses in the same way (KERNFS_ROOT_EXTRA_OPEN_PERM_CHECK).
        if wants_read(flags) and self.render is None:
            raise AccessDenied("this file cannot be read")
        if wants_write(flags) and self.write is None:
            raise AccessDenied("this file cannot be written")
        snapshot = None
        if wants_read(flags):
            snapshot = self.texts.take_look(self.ino, caller) or await self.make_to_read(caller)
        return CommandText(self, caller, snapshot, flags) if wants_write(flags) else OpenText(self, caller, snapshot)


class OpenText(OpenFile):
    """One open of a text file."""

    __slots__ = ("_caller", "_file", "_seen", "_snapshot")

    def __init__(self, file: TextFile, caller: Caller, snapshot: TextSnapshot | None) -> None:
        """It reads ``snapshot``, if it is open for reading. Raises the refusal of ``file.texts``."""
        self._file = file
        self._caller = caller
        # As in kernfs, an unread file counts as changed.
        self._seen: int | None = None
        self._snapshot = snapshot
        file.texts.hold(caller.uid, self._text)
        if snapshot is not None:
            file.texts.opened(file.ino, caller, snapshot)

    @property
    def _text(self) -> bytes:
        return b"" if self._snapshot is None else self._snapshot.text

    def _let_text_go(self) -> None:
        self._file.texts.let_go(self._caller.uid, self._text)
        if self._snapshot is not None:
            self._file.texts.closed(self._file.ino, self._caller, self._snapshot)

    async def read(self, offset: int, size: int) -> bytes:
        if offset == 0:
            if self._seen is not None or self._snapshot is None:
                snapshot = await self._file.make_to_read(self._caller)
                self._file.texts.hold(self._caller.uid, snapshot.text)
                self._let_text_go()
                self._file.texts.opened(self._file.ino, self._caller, snapshot)
                self._snapshot = snapshot
            self._seen = self._snapshot.version
        return self._text[offset : offset + size]

    def poll(self, wake: Callable[[], None] | None) -> int:
        change = self._file.change
        if change is None:
            return READABLE | WRITABLE
        if wake is not None:
            change.await_next(self, wake)
        changed = CHANGED if self._seen != change.count else 0
        return READABLE | WRITABLE | changed

    def release(self) -> None:
        if self._file.change is not None:
            self._file.change.forget(self)
        self._let_text_go()


class CommandText(OpenText):
    """One open of a text file for writing."""

    __slots__ = ("_base", "_opener", "_passed_on", "_pieces", "_reply", "_written_to")

    def __init__(self, file: TextFile, caller: Caller, snapshot: TextSnapshot | None, flags: int) -> None:
        super().__init__(file, caller, snapshot)
        self._opener = Opener(caller.pid, file.ino)
        # For O_APPEND the kernel chooses the offset, from a file size that it computes after each write.
        self._pieces = Pieces(append=bool(flags & os.O_APPEND), json=file.json)
        self._passed_on = True
        self._reply: bytes | None = None
        self._base: int | None = None
        self._written_to = 0

    async def read(self, offset: int, size: int) -> bytes:
        if self._reply is None:
            return await super().read(offset, size)
        return self._read_reply(self._reply, offset, size)

    def _read_reply(self, reply: bytes, offset: int, size: int) -> bytes:
        """The reply begins at the file position after the last write, and at offset 0 as well."""
        if offset == 0:
            self._base = 0
        elif self._base is None:
            self._base = self._written_to if offset >= self._written_to else 0
        start = max(offset - self._base, 0)
        return reply[start : start + size]

    async def write(self, offset: int, data: bytes) -> int:
        before = self._pieces.held
        try:
            whole = self._pieces.take(offset, data)
            if whole is None:
                self._hold(offset)
        except KtaskfsError as error:
            self._tell_refused(before + data, error)
            raise
        finally:
            self._let_go(before)
        if whole is None:
            if not before:
                self._passed_on = await self._opener_has_it_open() is not True
            return len(data)
        try:
            await self._carry_out(whole)
        except BaseException:
            self._pieces.refused(offset)
            raise
        self._pieces.done(offset, data)
        self._base = None
        self._written_to = offset + len(data)
        return len(data)

    def _hold(self, offset: int) -> None:
        """Count the held pieces as text of this open. Raises the quota's refusal."""
        try:
            self._file.texts.hold(self._caller.uid, self._pieces.held)
        except KtaskfsError:
            self._pieces.refused(offset)
            raise

    def _let_go(self, text: bytes) -> None:
        if text:
            self._file.texts.let_go(self._caller.uid, text)

    def _tell_refused(self, command: bytes, error: KtaskfsError) -> None:
        if self._file.refused is not None:
            self._file.refused(self._caller, os.fsdecode(command[:COMMAND_MAX]), error)

    async def _carry_out(self, whole: bytes) -> None:
        carry_out = self._file.write
        assert carry_out is not None
        try:
            command = _text_of(whole, may_be_empty=self._file.may_be_empty)
        except KtaskfsError as error:
            self._tell_refused(whole, error)
            raise
        reply = await carry_out(self._caller, command)
        if reply is not None:
            self._reply = ((self._reply or b"") + os.fsencode(reply))[-REPLY_MAX:]

    @property
    def pending(self) -> bool:
        return bool(self._pieces.held)

    async def closed(self, *, last: bool) -> None:
        """Run the held command, if nobody can add to it: at the last close(2), or when the opener has closed the file.

        If the opener passed the descriptor on before, only the last close counts. The pieces of an opener that a signal
        ends are dropped. During an execve(2) that closes the file, nobody sees (Linux 6.18) whether the opener has it
        open, so the last close counts then, too.
        """
        held = self._pieces.held
        if not last and self._passed_on:
            return
        # First, because the opener may be gone at the next close.
        refusal = await self._refusal()
        if not (last or isinstance(refusal, Incomplete)) and await self._opener_has_it_open() is not False:
            return
        if not held or self._pieces.held is not held:  # another close, or a write, came first
            return
        whole = self._pieces.finish()
        self._let_go(whole)
        if refusal is not None:
            self._tell_refused(whole, refusal)
            raise refusal
        await self._carry_out(whole)

    async def _refusal(self) -> KtaskfsError | None:
        """Why the held command is not run: Incomplete if a signal ends the opener, NoThread if nobody can look."""
        with trio.move_on_after(EXEC_PATIENCE):
            limiter = self._file.texts.death_threads.of(self._caller.uid)
            try:
                if await in_thread(self._opener.was_killed, limiter=limiter):
                    return Incomplete("its writer was killed before the command was complete")
            except NoThread as error:
                return error
        return None

    async def _opener_has_it_open(self) -> bool | None:
        """Whether the opener has the file open; None if unknown, also if the answer takes too long."""
        with contextlib.suppress(NoThread), trio.move_on_after(PATIENCE):
            limiter = self._file.texts.open_threads.of(self._caller.uid)
            return await in_thread(self._opener.has_it_open, limiter=limiter)
        return None

    def release(self) -> None:
        self._let_go(self._pieces.held)
        super().release()


def _may_read(attributes: Attributes, caller: Caller) -> bool:
    """Whether the mode bits let ``caller`` read, by its uid and primary group; its other groups are unknown."""
    if caller.uid == 0:
        return True
    if caller.uid == attributes.uid:
        return bool(attributes.mode & stat.S_IRUSR)
    return bool(attributes.mode & (stat.S_IRGRP if caller.gid == attributes.gid else stat.S_IROTH))


def _text_of(command: bytes, *, may_be_empty: bool) -> str:
    """The text of a whole command. Raises BadWrite."""
    stripped = command.strip()
    if not (stripped or may_be_empty):
        raise BadWrite("the command is empty")
    if b"\0" in stripped:
        raise BadWrite("the command has a NUL byte")
    return os.fsdecode(stripped)
