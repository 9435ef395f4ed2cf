"""The kernel's requests, handed to their inodes."""

from __future__ import annotations

import errno
import functools
import itertools
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

import pyfuse3

from ktaskfs.errors import NotPermitted
from ktaskfs.fuse.answers import NAME_MAX, answering, caller_of, entry_of, filesystem_totals
from ktaskfs.fuse.inodes import Inodes
from ktaskfs.vfs import Caller, Directory, File, Link, OpenFile
from ktaskfs.vfs.refusals import AccessDenied, NameTooLong, NoSuchEntry, NotADirectory, NotAFile, NotALink

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from typing import NoReturn

    from ktaskfs.fuse.turns import Turns
    from ktaskfs.vfs import Inode

P = ParamSpec("P")
T = TypeVar("T")

UNKNOWN_INO: Final = 0xFFFFFFFF
"""The d_ino of ``..``, as libfuse reports a number that it does not know; nothing resolves a path by it."""

DOTS: Final = 2
"""Directory cookies 1 and 2 follow ``.`` and ``..``; the child at index i of the snapshot has cookie i + 3."""

LISTED_MAX: Final = 100
"""Children in one reply to a listing, so that a long one leaves others their turn. The kernel asks for the rest."""

NOBODY: Final = frozenset({errno.ENODEV, errno.ENOTCONN, errno.ENOENT})
"""The errors of a notification after the end of the mount, when nobody is left to wake."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Opened:
    """An open file, its inode, and who opened it."""

    file: OpenFile
    ino: int
    caller: Caller


class _Listing:
    """An open directory: the children as they were at the last opendir(3) or rewinddir(3)."""

    __slots__ = ("_children", "_rest", "caller", "directory")

    def __init__(self, directory: Directory, caller: Caller) -> None:
        self.directory = directory
        self.caller = caller
        self.take()

    def take(self) -> None:
        """Begin anew."""
        self._children: list[tuple[str, Inode]] = []
        self._rest = iter(self.directory.entries(self.caller))

    def children(self, start: int, count: int) -> list[tuple[str, Inode]]:
        """Some of them. Those that nobody has asked for are not made."""
        self._children += itertools.islice(self._rest, max(0, start + count - len(self._children)))
        return self._children[start : start + count]


def in_turn(
    handler: Callable[Concatenate[TreeOperations, P], Awaitable[T]],
) -> Callable[Concatenate[TreeOperations, P], Coroutine[Any, Any, T]]:
    """A handler that begins when it is its user's turn; see ``answering``."""
    lookup = handler.__name__ == "lookup"

    @answering
    @functools.wraps(handler)
    async def in_its_turn(operations: TreeOperations, /, *args: P.args, **kwargs: P.kwargs) -> T:
        size = len(args[-1]) if isinstance(args[-1], bytes) else 0
        await operations.turns.take(operations.uid_of(*args), lookup=lookup, size=size)
        return await handler(operations, *args, **kwargs)

    return in_its_turn


class TreeOperations(pyfuse3.Operations):
    """Serves the tree below ``root``, whose inode number is ROOT_INO.

    The base class answers flush, fsync, access and extended attributes, with ENOSYS. The kernel then never asks again,
    and takes the first two as done.
    """

    supports_dot_lookup = False  # only for export over NFS

    def __init__(self, root: Directory, turns: Turns) -> None:
        super().__init__()
        self.turns = turns
        self._inodes = Inodes(root)
        self._handles = itertools.count(1)
        self._files: dict[int, _Opened] = {}
        self._listings: dict[int, _Listing] = {}

    @property
    def static_names(self) -> list[str]:
        """The paths of all inodes that are always there, below the root."""
        return self._inodes.static_names

    @property
    def open_handles(self) -> int:
        """Open files and directories."""
        return len(self._files) + len(self._listings)

    def close(self) -> None:
        """Release all files that are open when the mount is gone: a forced unmount sends no FUSE_RELEASE."""
        self._listings.clear()
        while self._files:
            _, opened = self._files.popitem()
            try:
                opened.file.release()
            except Exception:
                log.exception("release failed")

    def uid_of(self, *args: object) -> int:
        """The user behind a request with these arguments: of its context, or who opened the file or the directory."""
        if isinstance(args[-1], pyfuse3.RequestContext):
            return args[-1].uid
        handle = args[0]
        assert isinstance(handle, int)
        opened = self._files.get(handle) or self._listings[handle]
        return opened.caller.uid

    def _directory(self, inode: int) -> Directory:
        return self._require_directory(self._inodes[inode])

    @staticmethod
    def _require_directory(node: Inode) -> Directory:
        if not isinstance(node, Directory):
            raise NotADirectory("not a directory")
        return node

    # Names

    @in_turn
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        directory = self._directory(parent_inode)
        node = directory.lookup(_checked_name(name), caller_of(ctx))
        if node is None:
            raise NoSuchEntry("no such entry")
        return entry_of(node, directory.entry_timeout)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing is held for what the kernel knows."""

    @in_turn
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        directory = self._directory(parent_inode)
        node = await directory.mkdir(_checked_name(name), caller_of(ctx))
        return entry_of(node, directory.entry_timeout)

    @in_turn
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._directory(parent_inode).rmdir(_checked_name(name), caller_of(ctx))

    @in_turn
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> NoReturn:
        # The VFS says so where a directory has no method to create a file, as in sysfs.
        raise AccessDenied("files cannot be made here")

    @in_turn
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> NoReturn:
        raise NotPermitted("files cannot be made here")

    @in_turn
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext) -> NoReturn:
        raise NotPermitted("links cannot be made here")

    @in_turn
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext) -> NoReturn:
        raise NotPermitted("links cannot be made here")

    @in_turn
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> NoReturn:
        raise NotPermitted("files cannot be removed here")

    @in_turn
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> NoReturn:
        raise NotPermitted("nothing can be renamed here")

    # Attributes

    @in_turn
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return entry_of(self._inodes[inode])

    @in_turn
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if fields.update_mode or fields.update_uid or fields.update_gid:
            raise NotPermitted("modes and owners are not changed here")
        # A new size (O_TRUNC) or new times are accepted and mean nothing, so that redirections and touch(1) work.
        return entry_of(self._inodes[inode])

    @in_turn
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        node = self._inodes[inode]
        if not isinstance(node, Link):
            raise NotALink("not a link")
        return os.fsencode(node.target(caller_of(ctx)))

    @in_turn
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return filesystem_totals()

    # Open files

    @in_turn
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        caller = caller_of(ctx)
        node = self._inodes.for_opening(inode, caller)
        if not isinstance(node, File):
            raise NotAFile("not a file")
        file = await node.open(caller, flags)
        handle = next(self._handles)
        self._files[handle] = _Opened(file, inode, caller)
        self._inodes.opened(node)
        return pyfuse3.FileInfo(fh=handle, direct_io=True, keep_cache=False)

    @in_turn
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._files[fh].file.read(off, size)

    @in_turn
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._files[fh].file.write(off, buf)

    @in_turn
    async def poll(
        self, inode: int, fh: int, poll_handle: pyfuse3.PollHandle | None, ctx: pyfuse3.RequestContext
    ) -> int:
        # Every open file of the kernel has one wait queue, which one notification wakes whole; so the newest
        # handle is as good as all that came before, and the older ones are freed when it takes their place.
        wake = None if poll_handle is None else functools.partial(_wake, poll_handle)
        return self._files[fh].file.poll(wake)

    @answering
    async def release(self, fh: int) -> None:
        opened = self._files.pop(fh)
        self._inodes.released(opened.ino)
        opened.file.release()

    # Open directories

    @in_turn
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        caller = caller_of(ctx)
        directory = self._require_directory(self._inodes.for_opening(inode, caller))
        handle = next(self._handles)
        self._listings[handle] = _Listing(directory, caller)
        return handle

    @in_turn
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        listing = self._listings[fh]
        directory = listing.directory
        if start_id == 0:
            listing.take()
        for cookie in range(start_id + 1, DOTS + 1):
            # The kernel takes no reference to these two, and sends no FUSE_FORGET for them.
            entry = entry_of(directory)
            if cookie == DOTS:
                entry.st_ino = UNKNOWN_INO
            if not pyfuse3.readdir_reply(token, b"." * cookie, entry, cookie):
                return
        timeout = directory.entry_timeout
        start = max(start_id - DOTS, 0)
        for index, (name, node) in enumerate(listing.children(start, LISTED_MAX), start):
            if not pyfuse3.readdir_reply(token, os.fsencode(name), entry_of(node, timeout), index + DOTS + 1):
                return

    @answering
    async def releasedir(self, fh: int) -> None:
        del self._listings[fh]


def _checked_name(name: bytes) -> str:
    if len(name) > NAME_MAX:
        raise NameTooLong(f"a name is at most {NAME_MAX} bytes")
    return os.fsdecode(name)


def _wake(handle: pyfuse3.PollHandle) -> None:
    try:
        handle.notify()
    except OSError as error:
        if error.errno not in NOBODY:
            log.exception("a poll could not be woken")
