"""Facts from statx(2) beyond stat(2), without asking a file server."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final, NamedTuple

from ktaskfs.host import syscalls

STATX_ATTR_IMMUTABLE: Final = 0x10
STATX_ATTR_APPEND: Final = 0x20
STATX_ATTR_MOUNT_ROOT: Final = 0x2000

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_BTIME: Final = 0x800
_STATX_MNT_ID: Final = 0x1000
_STATX_SIZE: Final = 256
_STATX_ATTRIBUTES_AT: Final = 8
"""The offset of the attributes in struct statx, u64 (linux/stat.h)."""
_STATX_ATTRIBUTES_MASK_AT: Final = 56
"""Where struct statx says which attributes are supported, as u64."""
_STATX_UID_AT: Final = 20
"""Where struct statx has uid and gid, two of u32, and the mode as u16."""
_STATX_INO_AT: Final = 32
"""Where struct statx has the inode number, size and blocks, each as u64."""
_STATX_DEV_AT: Final = 136
"""Where struct statx has the device's numbers, two of u32."""
_STATX_BTIME_AT: Final = 80
"""Where struct statx has the time of birth: seconds as s64, nanoseconds as u32."""
_STATX_MNT_ID_AT: Final = 144
"""Where struct statx has the mount's number, as u64."""


def birth_time(path: str) -> int:
    """The time of the file's birth, in nanoseconds (statx(2), STATX_BTIME); raises OSError.

    0 if its filesystem lacks it (hugetlbfs), or a filter forbids the call.
    """
    status = _read_statx(_AT_FDCWD, path, 0, _STATX_BTIME)
    known, *_ = struct.unpack_from("=I", status)
    seconds, nanoseconds = struct.unpack_from("=qI", status, _STATX_BTIME_AT)
    return seconds * 10**9 + nanoseconds if known & _STATX_BTIME else 0


def attributes(fd: int) -> int:
    """The STATX_ATTR_ bits of an open file or directory (statx(2)); raises OSError. 0 if a filter forbids the call."""
    bits: int = struct.unpack_from("=Q", _read_statx(fd, "", _AT_EMPTY_PATH, 0), _STATX_ATTRIBUTES_AT)[0]
    return bits


def is_mount_root(fd: int) -> bool:
    """Whether ``fd`` is the root of a mount. statx(2), STATX_ATTR_MOUNT_ROOT.

    Raises OSError: ENOSYS if a filter forbids the call, or before Linux 5.8.
    """
    status = _read_statx(fd, "", _AT_EMPTY_PATH, 0)
    known: int = struct.unpack_from("=Q", status, _STATX_ATTRIBUTES_MASK_AT)[0]
    if not known & STATX_ATTR_MOUNT_ROOT:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    bits: int = struct.unpack_from("=Q", status, _STATX_ATTRIBUTES_AT)[0]
    return bool(bits & STATX_ATTR_MOUNT_ROOT)


class FileStatus(NamedTuple):
    """The status of a file, as from stat(2); ``size`` is in bytes, ``blocks`` are of 512."""

    device: int
    inode: int
    mode: int
    uid: int
    size: int
    blocks: int


def file_status(directory: int, path: str) -> FileStatus:
    """The status of the file at ``path``, or of ``directory`` itself if ``path`` is empty, without asking its server,
    which may never answer (FUSE).

    statx(2), AT_STATX_DONT_SYNC. Raises OSError. Zeros if that is forbidden (EPERM); 0 as ``inode`` of a file of
    FUSE that this process may not access.
    """
    status = _read_statx(directory, path, _AT_STATX_DONT_SYNC | _AT_EMPTY_PATH, 0)
    uid, _, mode = struct.unpack_from("=IIH", status, _STATX_UID_AT)
    inode, size, blocks = struct.unpack_from("=QQQ", status, _STATX_INO_AT)
    return FileStatus(os.makedev(*struct.unpack_from("=II", status, _STATX_DEV_AT)), inode, mode, uid, size, blocks)


def mount_id(fd: int) -> int:
    """The number of the mount through which ``fd`` was opened (statx(2), STATX_MNT_ID).

    Raises OSError: ENOSYS if a filter forbids the call, or before Linux 5.8.
    """
    status = _read_statx(fd, "", _AT_EMPTY_PATH, _STATX_MNT_ID)
    known, *_ = struct.unpack_from("=I", status)
    if not known & _STATX_MNT_ID:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    number: int = struct.unpack_from("=Q", status, _STATX_MNT_ID_AT)[0]
    return number


def _read_statx(directory: int, path: str, flags: int, mask: int) -> ctypes.Array[ctypes.c_char]:
    """A struct statx, all zeros if a filter forbids the call, as in older container runtimes."""
    status = ctypes.create_string_buffer(_STATX_SIZE)
    try:
        syscalls.statx(directory, path, flags, mask, status)
    except PermissionError as error:
        if error.errno != errno.EPERM:  # only links of /proc/PID/map_files return that
            raise
    return status
