"""Make room for huge pages: let the kernel reclaim memory.

The files are opened through this process's own /sys and /proc, like pools: in a worker these are its caller's.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

from ktaskfs.host import syscalls

SLACK: Final = 4
"""Factor of reclaimed to missing bytes, because huge pages need contiguous memory (measured)."""
_ALL_CACHES: Final = b"3"
"""Page cache, and dentries and inodes, which fragment memory (Documentation/admin-guide/sysctl/vm.rst)."""


class RoomMaker:
    """A kernel file that makes room when written. Methods raise OSError."""

    def __init__(self, fd: int, *, by_size: bool) -> None:
        self._fd = fd
        self._by_size = by_size

    def make_room(self, size: int) -> None:
        """Reclaim ``size`` bytes, or as much as possible. It may take seconds."""
        text = b"%d swappiness=0" % (size * SLACK) if self._by_size else _ALL_CACHES
        with contextlib.suppress(BlockingIOError):  # less was reclaimable
            os.pwrite(self._fd, text, 0)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


def open_reclaim(node: int) -> RoomMaker | None:
    """Reclaims the page cache of one NUMA node, without swapping; None before Linux 6.18.

    Documentation/ABI/stable/sysfs-devices-node. Raises OSError: EACCES, EROFS.
    """
    try:
        fd = _open(f"/sys/devices/system/node/node{node}/reclaim", syscalls.SYSFS_MAGIC)
    except FileNotFoundError:
        return None
    return RoomMaker(fd, by_size=True)


def open_drop_caches() -> RoomMaker:
    """Drops all clean caches of the machine. Raises OSError: EACCES, EROFS, ENOENT."""
    return RoomMaker(_open("/proc/sys/vm/drop_caches", syscalls.PROC_SUPER_MAGIC), by_size=False)


def _open(path: str, magic: int) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if syscalls.filesystem_magic(fd) != magic:  # made by the caller
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return fd
