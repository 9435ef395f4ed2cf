"""Inodes and errors in FUSE replies."""

from __future__ import annotations

import errno
import functools
import logging
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import pyfuse3

from ktaskfs.errors import KtaskfsError
from ktaskfs.vfs import Caller, File, Inode
from ktaskfs.vfs.inode import NEW_TEXT_SIZE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from ktaskfs.vfs import Look

P = ParamSpec("P")
T = TypeVar("T")

NAME_MAX: Final = 255
BLOCK_SIZE: Final = 4096
SECTOR: Final = 512
"""The unit of st_blocks (stat(2))."""
IO_SIZE: Final = 65536
"""st_blksize. Most programs use buffers of this size, and pass a long command in one write(2); bash and dash keep the
smaller buffer of their first output (vfs.pieces)."""

log = logging.getLogger(__name__)


def answering(
    handler: Callable[P, Awaitable[T]], wait: Callable[P, Awaitable[None] | None] | None = None
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Turn the exceptions of ``handler`` into the errno of the reply; nothing else does so.

    An unexpected exception is a bug: it is logged with its traceback, and the caller gets EIO. ``wait`` is called
    first, with the same arguments, and awaited.
    """

    @functools.wraps(handler)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            if wait is not None and (waiting := wait(*args, **kwargs)) is not None:
                await waiting
            return await handler(*args, **kwargs)
        except KtaskfsError as error:
            raise pyfuse3.FUSEError(error.errno) from error
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            log.exception("%s failed", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return answer


def caller_of(context: pyfuse3.RequestContext) -> Caller:
    """The process that made the request."""
    return Caller(context.uid, context.gid, context.pid)


def entry_of(inode: Inode, entry_timeout: float = 0.0, look: Look | None = None) -> pyfuse3.EntryAttributes:
    """The attributes of ``inode``, and the seconds for which the kernel may cache them and the name.

    Those of a file without a lookup, as in a listing, are not cached.
    """
    attributes = inode.attributes()
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode.ino
    entry.st_mode = inode.kind | attributes.mode
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_nlink = inode.nlink
    entry.st_blksize = IO_SIZE
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = attributes.time_ns
    entry.attr_timeout = inode.attr_timeout
    if look is not None:
        entry.st_size = look.size
        entry.st_mtime_ns = look.changed_ns
        # A file with fewer blocks than bytes looks sparse, and cp(1) would search for holes.
        entry.st_blocks = -(-look.size // SECTOR)
    elif inode.kind == File.kind:
        entry.st_size = NEW_TEXT_SIZE
        entry.attr_timeout = 0.0
    entry.entry_timeout = 0.0 if inode.kind == File.kind else entry_timeout
    return entry


def filesystem_totals() -> pyfuse3.StatvfsData:
    """The answer to statfs(2): nothing is stored here, as in simple_statfs (fs/libfs.c)."""
    totals = pyfuse3.StatvfsData()
    totals.f_bsize = totals.f_frsize = BLOCK_SIZE
    totals.f_namemax = NAME_MAX
    return totals
