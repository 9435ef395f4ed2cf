"""Passes the kernel's requests to their inodes."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import logging
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar

import pyfuse3

from ktaskfs.errors import KtaskfsError, NotPermitted
from ktaskfs.fuse.answers import NAME_MAX, answering, caller_of, entry_of, filesystem_totals
from ktaskfs.fuse.fixed_names import FixedNames
from ktaskfs.fuse.inodes import Inodes
from ktaskfs.fuse.listing import Listing, listings_quota
from ktaskfs.fuse.pollers import Openings, wake
from ktaskfs.fuse.turns import TooManyRequests
from ktaskfs.vfs import Caller, Directory, File, Link, Look, OpenFile
from ktaskfs.vfs.refusals import AccessDenied, NameTooLong, NoSuchEntry, NotADirectory, NotAFile, NotALink, Stale

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from typing import NoReturn

    from ktaskfs.fuse.turns import Turns
    from ktaskfs.vfs import Inode

P = ParamSpec("P")
T = TypeVar("T")

UNKNOWN_INO: Final = 0xFFFFFFFF
"""The d_ino of ``..``, as libfuse reports an unknown number; nothing resolves a path by it."""

DOTS: Final = 2
"""Directory cookies 1 and 2 follow ``.`` and ``..``; the child whose name has the index i has cookie i + 3."""

LISTED_MAX: Final = 100
"""Maximum children in one reply to a listing, so that others get a turn. The kernel asks for the rest."""

OF_A_DEAD_SERVER: Final = "it was opened at a daemon that died: open it again"

log = logging.getLogger(__name__)


class _Opened(NamedTuple):
    """An open file: its inode, its opener, and whether it is a non-blocking stream."""

    file: OpenFile
    ino: int
    caller: Caller
    hasty: bool


def in_turn(
    handler: Callable[Concatenate[TreeOperations, P], Awaitable[T]],
) -> Callable[Concatenate[TreeOperations, P], Coroutine[Any, Any, T]]:
    """A handler that begins at its user's turn; see ``answering``."""
    lookup = handler.__name__ == "lookup"

    def turn(operations: TreeOperations, /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[None] | None:
        return None if operations.turns.free() else take(operations, operations.uid_of(*args))

    async def take(operations: TreeOperations, uid: int) -> None:
        try:
            await operations.turns.take(uid, lookup=lookup)
        except TooManyRequests as error:
            # After any other error the kernel drops the name, even if it is pinned (fuse_dentry_revalidate).
            raise (TooManyRequests(error.message, errno=errno.ENOMEM) if lookup else error) from None

    return answering(handler, turn)


class TreeOperations(FixedNames):
    """Serves the tree below ``root``, whose inode number is ROOT_INO.

    The base class answers fsync, access and extended attributes with ENOSYS. The kernel then never asks again, and
    considers fsync done.
    """

    supports_dot_lookup = False  # only for export over NFS

    def __init__(self, root: Directory, turns: Turns) -> None:
        super().__init__()
        self.turns = turns
        self.openings = Openings()
        self._inodes = Inodes(root)
        # Unlike any number of an earlier server, so that files opened there never mean a file here.
        self._handles = itertools.count(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        self._files: dict[int, _Opened] = {}
        self._listings: dict[int, Listing] = {}
        self._listed = listings_quota()
        self._hasty: Counter[tuple[int, int]] = Counter()
        """Non-blocking open streams, by inode number and pid: they are shown as empty, so that programs such as tar
        pass them."""

    @property
    def static_names(self) -> list[str]:
        """The paths of all static inodes, below the root."""
        return self._inodes.static_names

    @property
    def digest(self) -> str:
        """The digest of static data; see ``Inodes.digest``."""
        return self._inodes.digest()

    @property
    def open_handles(self) -> int:
        """Open files and directories."""
        return len(self._files) + len(self._listings)

    def close(self) -> None:
        """Release all open files at the end of the mount, because a forced unmount sends no FUSE_RELEASE."""
        self._listings.clear()
        while self._files:
            _, opened = self._files.popitem()
            try:
                opened.file.release()
            except Exception:
                log.exception("release failed")

    def uid_of(self, *args: object) -> int:
        """The user of a request with these arguments: from its context, or the opener of the file or directory."""
        if isinstance(args[-1], pyfuse3.RequestContext):
            return args[-1].uid
        handle = args[0]
        assert isinstance(handle, int)
        opened = self._listings.get(handle) or self._opened(handle)
        return opened.caller.uid

    def _directory(self, inode: int) -> Directory:
        return self._require_directory(self._inodes[inode])

    @staticmethod
    def _require_directory(node: Inode) -> Directory:
        if not isinstance(node, Directory):
            raise NotADirectory("not a directory")
        return node

    async def _look(self, node: Inode, caller: Caller, *, anew: bool) -> Look | None:
        if not isinstance(node, File):
            return None
        if not anew and self._hasty.get((node.ino, caller.pid)):
            return Look(0, node.attributes().time_ns)
        try:
            return await node.look(caller, anew=anew)
        except KtaskfsError:
            # ls(1) goes on, as with an unreadable file. The open makes the text again, and reports the error.
            return None

    # Names

    @in_turn
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        directory, caller = self._directory(parent_inode), caller_of(ctx)
        node = directory.lookup(_checked_name(name), caller)
        if node is None:
            raise NoSuchEntry("no such entry")
        return entry_of(node, directory.entry_timeout, await self._look(node, caller, anew=True))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Does nothing: the daemon holds nothing for inodes known to the kernel."""

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
        self.openings.note()
        # The VFS returns this if a directory cannot create files, as in sysfs.
        raise AccessDenied("files cannot be made here")

    # Attributes

    @in_turn
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        node = self._inodes[inode]
        return entry_of(node, look=await self._look(node, caller_of(ctx), anew=False))

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
            raise NotPermitted("modes and owners cannot be changed here")
        # A new size (O_TRUNC) or new times are accepted without effect, so that redirections and touch(1) work.
        node = self._inodes[inode]
        return entry_of(node, look=await self._look(node, caller_of(ctx), anew=False))

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

    def _opened(self, handle: int) -> _Opened:
        opened = self._files.get(handle)
        if opened is None:
            raise Stale(OF_A_DEAD_SERVER)
        return opened

    def _file(self, handle: int) -> OpenFile:
        return self._opened(handle).file

    @in_turn
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        self.openings.note()
        caller = caller_of(ctx)
        node = self._inodes.for_opening(inode, caller)
        if not isinstance(node, File):
            raise NotAFile("not a file")
        file = await node.open(caller, flags)
        handle = next(self._handles)
        hasty = not node.seekable and bool(flags & os.O_NONBLOCK)
        self._files[handle] = _Opened(file, inode, caller, hasty)
        self._inodes.opened(node)
        if hasty:
            self._hasty[inode, caller.pid] += 1
        return pyfuse3.FileInfo(fh=handle, direct_io=True, keep_cache=False, nonseekable=not node.seekable)

    @in_turn
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._file(fh).read(off, size)

    @answering
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        opened = self._opened(fh)
        with self.turns.writing(opened.caller.uid, len(buf)):
            await self.turns.take(opened.caller.uid)
            return await opened.file.write(off, buf)

    @in_turn
    async def poll(
        self, inode: int, fh: int, poll_handle: pyfuse3.PollHandle | None, ctx: pyfuse3.RequestContext
    ) -> int:
        # Every open file of the kernel has one wait queue, and one notification wakes all of it; so the
        # newest handle replaces all earlier ones, which are freed.
        notify = None if poll_handle is None else functools.partial(wake, poll_handle)
        return self._file(fh).poll(notify)

    @answering
    async def flush(self, fh: int) -> None:
        opened = self._opened(fh)  # held pieces at a dead server are lost: close(2) must report that
        if opened.file.pending:
            await self.turns.take(opened.caller.uid)
            await opened.file.closed(last=False)

    @answering
    async def release(self, fh: int) -> None:
        opened = self._files.get(fh)
        try:
            if opened is not None and opened.file.pending:
                with contextlib.suppress(KtaskfsError):  # nobody waits for this answer
                    await self.turns.take(opened.caller.uid)
                    await opened.file.closed(last=True)
        finally:
            self._release(fh)

    def _release(self, handle: int) -> None:
        opened = self._files.pop(handle, None)
        if opened is None:  # from a dead server, or the mount is gone
            return
        self._inodes.released(opened.ino)
        if opened.hasty:
            self._hasty.subtract([key := (opened.ino, opened.caller.pid)])
            if not self._hasty[key]:
                del self._hasty[key]
        opened.file.release()

    # Open directories

    @in_turn
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        self.openings.note()
        caller = caller_of(ctx)
        directory = self._require_directory(self._inodes.for_opening(inode, caller))
        listing = Listing(directory, caller, self._listed)
        handle = next(self._handles)
        self._listings[handle] = listing
        return handle

    @in_turn
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        listing = self._listings.get(fh)
        if listing is None:
            raise Stale(OF_A_DEAD_SERVER)
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
        for index, name, node in itertools.islice(listing.children(max(start_id - DOTS, 0)), LISTED_MAX):
            if not pyfuse3.readdir_reply(token, os.fsencode(name), entry_of(node, timeout), index + DOTS + 1):
                return

    @answering
    async def releasedir(self, fh: int) -> None:
        listing = self._listings.pop(fh, None)
        if listing is not None:  # otherwise it was opened at a dead server
            listing.close()


def _checked_name(name: bytes) -> str:
    if len(name) > NAME_MAX:
        raise NameTooLong(f"a name is at most {NAME_MAX} bytes")
    return os.fsdecode(name)
