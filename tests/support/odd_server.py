"""A FUSE of one directory of files in memory, which refuses some calls.

    python -m tests.support.odd_server POINT [OPERATION[:NAME]=ERRNO ...]

OPERATION: statfs, read, truncate, chmod or utime. NAME: only for that file.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from dataclasses import dataclass, field

import pyfuse3
import trio


@dataclass
class _Node:
    number: pyfuse3.InodeT
    name: bytes
    mode: int
    data: bytearray = field(default_factory=bytearray)
    modified: int = 0


class _Server(pyfuse3.Operations):
    def __init__(self, refusals: dict[str, int]) -> None:
        super().__init__()
        self._refusals = refusals
        self._nodes = {pyfuse3.ROOT_INODE: _Node(pyfuse3.ROOT_INODE, b"", stat.S_IFDIR | 0o755)}

    def _check(self, operation: str, node: _Node) -> None:
        number = self._refusals.get(operation) or self._refusals.get(f"{operation}:{os.fsdecode(node.name)}")
        if number:
            raise pyfuse3.FUSEError(number)

    def _attributes(self, node: _Node) -> pyfuse3.EntryAttributes:
        found = pyfuse3.EntryAttributes()
        found.st_ino, found.st_mode, found.st_nlink = node.number, node.mode, 1
        found.st_size, found.st_mtime_ns = len(node.data), node.modified
        return found

    async def getattr(self, inode: pyfuse3.InodeT, ctx: object = None) -> pyfuse3.EntryAttributes:
        return self._attributes(self._nodes[inode])

    async def lookup(self, parent_inode: object, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        for node in self._nodes.values():
            if node.name == name:
                return self._attributes(node)
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def opendir(self, inode: pyfuse3.InodeT, ctx: object) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: object, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for number, node in sorted(self._nodes.items()):
            if not node.name or number <= start_id:
                continue
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(node.name), self._attributes(node), number):
                return

    async def open(self, inode: pyfuse3.InodeT, flags: object, ctx: object) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode))

    async def create(
        self, parent_inode: object, name: bytes, mode: int, flags: object, ctx: object
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        node = _Node(pyfuse3.InodeT(max(self._nodes) + 1), name, stat.S_IFREG | stat.S_IMODE(mode))
        self._nodes[node.number] = node
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(node.number)), self._attributes(node)

    async def unlink(self, parent_inode: object, name: bytes, ctx: object) -> None:
        self._nodes = {number: node for number, node in self._nodes.items() if node.name != name}

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        node = self._nodes[pyfuse3.InodeT(fh)]
        self._check("read", node)
        return bytes(node.data[off : off + size])

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        data = self._nodes[pyfuse3.InodeT(fh)].data
        data.extend(bytes(max(0, off - len(data))))
        data[off : off + len(buf)] = buf
        return len(buf)

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: object,
        ctx: object,
    ) -> pyfuse3.EntryAttributes:
        node = self._nodes[inode]
        if fields.update_size:
            self._check("truncate", node)
            node.data = node.data[: attr.st_size].ljust(attr.st_size, b"\0")
        if fields.update_mtime:
            self._check("utime", node)
            node.modified = attr.st_mtime_ns
        if fields.update_mode:
            self._check("chmod", node)
            node.mode = attr.st_mode
        return self._attributes(node)

    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        """No blocks and no inodes, as of a server of libfuse without a function for it."""
        self._check("statfs", self._nodes[pyfuse3.ROOT_INODE])
        return pyfuse3.StatvfsData()


def main() -> None:
    point, *texts = sys.argv[1:]
    pairs = (text.split("=") for text in texts)
    server = _Server({what: getattr(errno, name) for what, name in pairs})
    pyfuse3.init(server, point, {"fsname=odd", *pyfuse3.default_options})
    trio.run(pyfuse3.main)
    pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()
