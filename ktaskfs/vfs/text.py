"""Text files: a snapshot for every opening, commands by write(2), replies on the same descriptor."""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import KtaskfsError, TooBig
from ktaskfs.vfs.change import CHANGED, READABLE, WRITABLE, Change
from ktaskfs.vfs.inode import Attributes, Caller, File, OpenFile, wants_read, wants_write
from ktaskfs.vfs.refusals import AccessDenied, BadWrite

if TYPE_CHECKING:
    from ktaskfs.quota import Quota

COMMAND_MAX: Final = 64 * 1024
"""Bytes that one command may have. The kernel hands a write(2) over in one piece up to 1 MiB, so a longer
one is seen to be too long before any of it is acted upon."""

REPLY_MAX: Final = 64 * 1024
"""Bytes of replies that a descriptor keeps; the oldest go first."""

OPENING_SIZE: Final = 1024
"""Bytes that an open file takes besides its text; about what it takes in Python."""

Render = Callable[[Caller], str | bytes | Awaitable[str | bytes]]
Write = Callable[[Caller, str], Awaitable[str | None]]
Refused = Callable[[Caller, str, KtaskfsError], None]


class OpenTexts:
    """The text that open files hold. For each user in ``quota``, bytes that several openings share count once."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._openings: Counter[tuple[int, int]] = Counter()
        """By user and id of the bytes."""

    def hold(self, user: int, text: bytes) -> None:
        """One more opening of ``user`` holds ``text``; raises the quota's refusal."""
        key = user, id(text)
        self._quota.take(user, OPENING_SIZE + (0 if key in self._openings else len(text)))
        self._openings[key] += 1

    def let_go(self, user: int, text: bytes) -> None:
        """An opening of ``user`` holds ``text`` no longer."""
        key = user, id(text)
        self._openings[key] -= 1
        if not self._openings[key]:
            del self._openings[key]
        self._quota.give_back(user, OPENING_SIZE + (0 if key in self._openings else len(text)))


class TextFile(File):
    """A file of text, made by ``render`` for each caller that opens it.

    ``write`` gets the text of one write(2), stripped; an error that it raises is the error of that write. A text that
    it returns is a reply, which a descriptor open for reading and writing then reads instead of the file.
    ``change`` is what poll(2) on the file reports. ``refused`` is called for a write that never reaches ``write``,
    with as much of the command as was legible. ``texts`` limits what the openings hold: an open(2), or a read at the
    beginning, fails then.
    """

    __slots__ = ("change", "refused", "render", "texts", "write")

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
    ) -> None:
        super().__init__(ino, attributes)
        self.texts = texts
        self.render = render
        self.write = write
        self.change = change
        self.refused = refused

    async def open(self, caller: Caller, flags: int) -> OpenText:
        # The mode bits do not hold root back; sysfs refuses it just so (KERNFS_ROOT_EXTRA_OPEN_PERM_CHECK).
        if wants_read(flags) and self.render is None:
            raise AccessDenied("this file cannot be read")
        if wants_write(flags) and self.write is None:
            raise AccessDenied("this file cannot be written")
        opened = OpenText(self, caller, flags)
        try:
            if wants_read(flags):
                await opened.draw()
        except BaseException:
            opened.release()
            raise
        return opened


class OpenText(OpenFile):
    """One opening of a text file."""

    __slots__ = (
        "_append",
        "_base",
        "_caller",
        "_change",
        "_drawn_at",
        "_file",
        "_next",
        "_reply",
        "_seen",
        "_text",
        "_unread",
        "_written_to",
    )

    def __init__(self, file: TextFile, caller: Caller, flags: int) -> None:
        self._file = file
        self._caller = caller
        self._change = file.change
        # For O_APPEND the kernel chooses the offset, from a file size that it makes up itself after each write.
        self._append = bool(flags & os.O_APPEND)
        self._text = b""
        if file.texts is not None:
            file.texts.hold(caller.uid, self._text)
        self._unread = False
        self._drawn_at = 0
        # As in kernfs, a file that was not read yet counts as changed.
        self._seen: int | None = None
        self._reply: bytes | None = None
        self._base: int | None = None
        self._written_to = 0
        # The offset at which a further command may follow: bash writes "{ echo a; echo b; } > file" line by line. A
        # write without a newline at its end is a piece of a command that was too long for a buffer: nothing follows.
        self._next = 0

    async def draw(self) -> None:
        """Render the text again."""
        render = self._file.render
        if render is None:
            raise AccessDenied("this file cannot be read")
        # The count is taken first: a change while the text is being made must wake the reader again.
        drawn_at = 0 if self._change is None else self._change.count
        text = render(self._caller)
        if inspect.isawaitable(text):
            text = await text
        drawn = text.encode() if isinstance(text, str) else text
        texts = self._file.texts
        if texts is not None:
            texts.hold(self._caller.uid, drawn)
            texts.let_go(self._caller.uid, self._text)
        self._text = drawn
        self._drawn_at = drawn_at
        self._unread = True

    async def read(self, offset: int, size: int) -> bytes:
        if self._reply is not None:
            return self._read_reply(self._reply, offset, size)
        if offset == 0:
            if not self._unread:
                await self.draw()
            self._unread = False
            self._seen = self._drawn_at
        return self._text[offset : offset + size]

    def _read_reply(self, reply: bytes, offset: int, size: int) -> bytes:
        """The reply begins where the last write left the file position, and at offset 0 as well."""
        if offset == 0:
            self._base = 0
        elif self._base is None:
            self._base = self._written_to if offset >= self._written_to else 0
        start = max(offset - self._base, 0)
        return reply[start : start + size]

    async def write(self, offset: int, data: bytes) -> int:
        carry_out = self._file.write
        if carry_out is None:
            raise AccessDenied("this file cannot be written")
        try:
            command = self._command(offset, data)
        except KtaskfsError as error:
            if self._file.refused is not None:
                self._file.refused(self._caller, data[:COMMAND_MAX].decode(errors="replace"), error)
            raise
        reply = await carry_out(self._caller, command)
        if reply is not None:
            self._reply = ((self._reply or b"") + reply.encode())[-REPLY_MAX:]
        self._base = None
        self._written_to = offset + len(data)
        self._next = self._written_to if data.endswith(b"\n") else 0
        return len(data)

    def _command(self, offset: int, data: bytes) -> str:
        if len(data) > COMMAND_MAX:
            raise TooBig(f"a command is at most {COMMAND_MAX} bytes")
        if offset and not self._append and offset != self._next:
            raise BadWrite(f"one write is one command, at offset 0 and not {offset}")
        stripped = data.strip()
        if not stripped:
            raise BadWrite("the command is empty")
        if b"\0" in stripped:
            raise BadWrite("the command has a NUL byte in it")
        try:
            return stripped.decode()
        except UnicodeDecodeError as error:
            raise BadWrite(f"byte {error.start} of the command is not UTF-8") from error

    def poll(self, wake: Callable[[], None] | None) -> int:
        if self._change is None:
            return READABLE | WRITABLE
        if wake is not None:
            self._change.await_next(self, wake)
        changed = CHANGED if self._seen != self._change.count else 0
        return READABLE | WRITABLE | changed

    def release(self) -> None:
        if self._change is not None:
            self._change.forget(self)
        if self._file.texts is not None:
            self._file.texts.let_go(self._caller.uid, self._text)
