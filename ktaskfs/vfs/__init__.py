"""A library of inodes, which another layer serves to the kernel. Imports no other layer.

All content derives from five kinds of inode. Each implements only some operations, and refuses the rest with the errno
of sysfs or cgroup v2: ``StaticDirectory``, ``Directory`` (override ``lookup``, ``names`` and ``find``), ``Link``,
``TextFile`` (snapshot for each open, commands by write(2), replies on the same descriptor, poll(2) by a ``Change``) and
``StreamFile`` (read continuously). All run in one trio event loop and must not block it. Refusals are ``KtaskfsError``.
Any other exception is a bug, and becomes EIO.

    numbers = InodeNumbers()
    limit = Limit()                                 # the value; set() calls limit.change.notify()

    async def set_limit(caller: Caller, text: str) -> None:
        limit.set(parse_int(text))                  # raises InvalidValue: the writer gets EINVAL

    root = StaticDirectory(ROOT_INO, Attributes(0o755), {
        "limit": TextFile(numbers.take(), Attributes(0o644), lambda caller: f"{limit.value}\\n", set_limit,
                          change=limit.change),
        "events": StreamFile(numbers.take(), Attributes(0o444), lambda caller: EventStream(limit)),
    })
"""

from ktaskfs.vfs.change import Change, WatchedChange, Watcher
from ktaskfs.vfs.inode import (
    BRIEFLY,
    FOREVER,
    NEW_TEXT_SIZE,
    ROOT_INO,
    Attributes,
    Caller,
    Directory,
    File,
    Inode,
    InodeNumbers,
    Link,
    Look,
    OpenFile,
    StaticDirectory,
)
from ktaskfs.vfs.notices import Notices
from ktaskfs.vfs.open_texts import OpenTexts
from ktaskfs.vfs.patience import Patience
from ktaskfs.vfs.pieces import COMMAND_MAX
from ktaskfs.vfs.portions import Portions
from ktaskfs.vfs.refusals import AccessDenied, TooMuchText
from ktaskfs.vfs.splices import Splices
from ktaskfs.vfs.stream import Stream, StreamFile
from ktaskfs.vfs.text import TextFile

__all__ = [
    "BRIEFLY",
    "COMMAND_MAX",
    "FOREVER",
    "NEW_TEXT_SIZE",
    "ROOT_INO",
    "AccessDenied",
    "Attributes",
    "Caller",
    "Change",
    "Directory",
    "File",
    "Inode",
    "InodeNumbers",
    "Link",
    "Look",
    "Notices",
    "OpenFile",
    "OpenTexts",
    "Patience",
    "Portions",
    "Splices",
    "StaticDirectory",
    "Stream",
    "StreamFile",
    "TextFile",
    "TooMuchText",
    "WatchedChange",
    "Watcher",
]
