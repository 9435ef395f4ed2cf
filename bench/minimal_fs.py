"""The least filesystem that pyfuse3 can serve: one file, ``status``. What ktaskfs's own files are compared with.

Usage: python -m bench.minimal_fs MOUNTPOINT BYTES [--exact | --same]
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import Final

import pyfuse3
import trio

FILE: Final = pyfuse3.InodeT(pyfuse3.ROOT_INODE + 1)
NAME: Final = b"status"
DIRECTORY: Final = pyfuse3.InodeT(FILE + 1)
LINK: Final = pyfuse3.InodeT(FILE + 2)
KINDS: Final = {FILE: stat.S_IFREG | 0o444, LINK: stat.S_IFLNK | 0o777}


class MinimalFs(pyfuse3.Operations):
    """Serves ``content`` with direct_io, as ktaskfs does, and lets the kernel cache names and attributes."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content = content

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = KINDS.get(inode, stat.S_IFDIR | 0o755)
        return entry

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(FILE)

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io=True)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return self.content[off : off + size]


class ExactFs(MinimalFs):
    """Its sizes are always current, so the kernel caches no name of a file; it gets each close(2), which can fail."""

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        entry = await super().lookup(parent_inode, name, ctx)
        entry.entry_timeout = 0.0
        return entry

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Nothing was held back."""


class SameFs(ExactFs):
    """It also leads through a link to a directory that may be gone: ``link/task/status``, as a task's files."""

    _names: Final = {b"link": LINK, b"task": DIRECTORY, b"status": FILE}

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name not in self._names:
            raise pyfuse3.FUSEError(errno.ENOENT)
        entry = self._attributes(self._names[name])
        if name != b"link":
            entry.entry_timeout = 0.0
        return entry

    async def readlink(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileNameT:
        return pyfuse3.FileNameT(b".")


def main() -> None:
    mountpoint, size = sys.argv[1], int(sys.argv[2])
    kind = {"--exact": ExactFs, "--same": SameFs}.get(sys.argv[-1], MinimalFs)
    options = set(pyfuse3.default_options) | {"fsname=minimal", "default_permissions"}
    pyfuse3.init(kind((b"Key:\tvalue\n" * (size // 11 + 1))[:size]), mountpoint, options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=os.path.ismount(mountpoint))


if __name__ == "__main__":
    main()
