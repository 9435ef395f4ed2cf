"""``debug/ktask_NAME``: a tunable that only a caller with the daemon's rights may set."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Final

from ktaskfs.control.privilege import require_admin
from ktaskfs.errors import KtaskfsError
from ktaskfs.vfs import File, Look, OpenFile, TextFile
from ktaskfs.vfs.inode import wants_write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.control.filesystem import Filesystem
    from ktaskfs.tasks.tunables import Tunable
    from ktaskfs.vfs import Caller

LOG: Final = logging.getLogger(__name__)


class TunableFile(File):
    """The kernel checks the mode bits, but they do not restrict everybody, so this checks capabilities."""

    __slots__ = ("_file", "_fs", "_name", "_tunable")

    def __init__(self, fs: Filesystem, tunable: Tunable) -> None:
        super().__init__(fs.numbers.take(), fs.attributes(0o644))
        settings = fs.service.table.settings

        async def write(caller: Caller, text: str) -> None:
            before = tunable.format(settings[tunable.name])
            with self._refusals_logged(caller):
                settings.set(tunable, text)
            after = tunable.format(settings[tunable.name])
            LOG.info("%s: %s, was %s, by user %d", self._name, after, before, caller.uid, extra=self._fields(caller))

        self._fs = fs
        self._name = f"debug/{tunable.file}"
        self._tunable = tunable.name
        write_recorded, refused = fs.log.keeping(self._name, write)
        self._file = TextFile(
            self.ino,
            self.attributes(),
            lambda caller: f"{tunable.format(settings[tunable.name])}\n",
            write_recorded,
            refused=refused,
            texts=fs.limits.texts,
        )

    async def look(self, caller: Caller, *, anew: bool) -> Look:
        return await self._file.look(caller, anew=anew)

    async def open(self, caller: Caller, flags: int) -> OpenFile:
        if wants_write(flags):
            with self._refusals_logged(caller), self._fs.log.refusals(self._name, caller, "(open)"):
                effective, _ = await self._fs.callers.capabilities(caller)
                require_admin(caller.uid, effective, self._fs.root.uid, f"write to {self._name}")
        return await self._file.open(caller, flags)

    def _fields(self, caller: Caller) -> dict[str, object]:
        return {"KTASK_TUNABLE": self._tunable, "KTASK_UID": caller.uid}

    @contextlib.contextmanager
    def _refusals_logged(self, caller: Caller) -> Iterator[None]:
        try:
            yield
        except KtaskfsError as error:
            text, extra = error.message, self._fields(caller)
            LOG.warning("%s: refused to user %d: %s", self._name, caller.uid, text, extra=extra)
            raise
