"""``debug/ktask_NAME``: a tunable that only a caller with the daemon's rights may set."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from ktaskfs.control.privilege import require_admin
from ktaskfs.errors import KtaskfsError
from ktaskfs.vfs import File, Look, OpenFile, TextFile
from ktaskfs.vfs.inode import wants_write

if TYPE_CHECKING:
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
            extra = {"KTASK_TUNABLE": tunable.name, "KTASK_UID": caller.uid}
            before = tunable.format(settings[tunable.name])
            try:
                settings.set(tunable, text)
            except KtaskfsError as error:
                LOG.warning("%s: refused to user %d: %s", self._name, caller.uid, error.message, extra=extra)
                raise
            after = tunable.format(settings[tunable.name])
            LOG.info("%s: %s, was %s, by user %d", self._name, after, before, caller.uid, extra=extra)

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
            try:
                effective, _ = await self._fs.callers.capabilities(caller)
                require_admin(caller.uid, effective, self._fs.root.uid, f"write to {self._name}")
            except KtaskfsError as error:
                self._fs.log.refused(self._name, caller, "(open)", error)
                extra = {"KTASK_TUNABLE": self._tunable, "KTASK_UID": caller.uid}
                LOG.warning("%s: refused to user %d: %s", self._name, caller.uid, error.message, extra=extra)
                raise
        return await self._file.open(caller, flags)
