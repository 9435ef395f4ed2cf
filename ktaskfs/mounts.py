"""System calls on mounts that the standard library lacks. Each raises OSError with the kernel's errno.

The numbers are the same on all architectures. All but mount(2) and umount2(2) need CAP_SYS_ADMIN and Linux 5.2, or
later as noted, and return an O_PATH descriptor of a detached mount.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from ktaskfs.libc import LIBC, checked

MOUNT_ATTR_RDONLY: Final = 1
MOUNT_ATTR_NOSUID: Final = 2
MOUNT_ATTR_NODEV: Final = 4
MOUNT_ATTR_NOEXEC: Final = 8
HARMLESS: Final = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
"""The attributes of a mount on which nothing can be changed, run or used as a device."""

_MNT_DETACH: Final = 2
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE: Final = 428
_OPEN_TREE_CLONE: Final = 1
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSCONFIG_CMD_CREATE: Final = 6
_FSMOUNT: Final = 432
_FS_CLOEXEC: Final = 1
"""FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC."""
_MOUNT_SETATTR: Final = 442


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    """mount(2)."""
    arguments = [os.fsencode(each) for each in (source, target, kind)]
    checked(LIBC.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(data)))


def detach(path: str) -> None:
    """Unmount the topmost filesystem at ``path``, even if it is busy. umount2(2)."""
    checked(LIBC.umount2(os.fsencode(path), _MNT_DETACH))


def clone_mount(path: str, attributes: int = 0) -> int:
    """Copy the mount at ``path``, without submounts, and set MOUNT_ATTR_ ``attributes`` on the copy (Linux 5.12).

    The copy does not make the first mount busy. open_tree(2), mount_setattr(2).
    """
    fd = _system_call(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    if attributes:
        change = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
        try:
            _system_call(_MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH, change, ctypes.sizeof(change))
        except OSError:
            os.close(fd)
            raise
    return fd


def mount_nowhere(kind: str) -> int:
    """Make a mount of the filesystem ``kind``. fsopen(2), fsconfig(2), fsmount(2)."""
    context = _system_call(_FSOPEN, kind.encode(), _FS_CLOEXEC)
    try:
        _system_call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _system_call(_FSMOUNT, context, _FS_CLOEXEC, 0)
    finally:
        os.close(context)


def open_mount(path: str) -> int:
    """An O_PATH descriptor of the directory ``path``. Every user may call it."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def open_harmless(path: str) -> int:
    """A HARMLESS copy of the mount at ``path``, or the mount itself if no copy is possible."""
    try:
        return clone_mount(path, HARMLESS)
    except OSError:
        return open_mount(path)


def _system_call(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_uint64] | None) -> int:
    function = LIBC["syscall"]
    function.restype = ctypes.c_long
    words = (ctypes.c_long(each) if isinstance(each, int) else each for each in (number, *arguments))
    return checked(function(*words))
