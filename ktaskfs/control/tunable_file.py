"""``debug/ktask_NAME``: a tunable, which only a caller with the daemon's rights may set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktaskfs.control.privilege import capabilities_of, require_admin
from ktaskfs.errors import KtaskfsError
from ktaskfs.vfs import File, OpenFile, TextFile
from ktaskfs.vfs.inode import wants_write

if TYPE_CHECKING:
    from ktaskfs.control.filesystem import Filesystem
    from ktaskfs.tasks.tunables import Tunable
    from ktaskfs.vfs import Caller


class TunableFile(File):
    """The kernel checks the mode bits; for uid 0 they say nothing, so its capabilities are looked at here."""

    __slots__ = ("_file", "_fs", "_name")

    def __init__(self, fs: Filesystem, tunable: Tunable) -> None:
        super().__init__(fs.numbers.take(), fs.attributes(0o644))
        settings = fs.service.table.settings

        async def write(caller: Caller, text: str) -> None:
            settings.set(tunable, text)

        self._fs = fs
        self._name = f"debug/{tunable.file}"
        write_recorded, refused = fs.log.keeping(self._name, write)
        self._file = TextFile(
            self.ino,
            self.attributes(),
            lambda caller: f"{tunable.format(settings[tunable.name])}\n",
            write_recorded,
            refused=refused,
            texts=fs.limits.texts,
        )

    async def open(self, caller: Caller, flags: int) -> OpenFile:
        if wants_write(flags):
            try:
                effective, _ = capabilities_of(caller)
                require_admin(caller.uid, effective, f"write to {self._name}")
            except KtaskfsError as error:
                self._fs.log.refused(self._name, caller, "(open)", error)
                raise
        return await self._file.open(caller, flags)
