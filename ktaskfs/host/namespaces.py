"""System calls on mounts and user namespaces. Each raises OSError with the kernel's errno."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

MOUNT_ATTR_RDONLY: Final = 1
MOUNT_ATTR_NOSUID: Final = 2
MOUNT_ATTR_NODEV: Final = 4
MOUNT_ATTR_NOEXEC: Final = 8
HARMLESS: Final = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
"""Nothing can be changed, run or used as a device."""

_AT_EMPTY_PATH: Final = 0x1000
_CLONE_NEWUSER: Final = 0x10000000
_OPEN_TREE: Final = 428
_OPEN_TREE_CLONE: Final = 1
_MOUNT_SETATTR: Final = 442

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


def _check(result: Any) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


def _system_call(number: int, *arguments: Any) -> int:
    return _check(_LIBC.syscall(ctypes.c_long(number), *arguments))


def open_mount(path: str) -> int:
    """An O_PATH descriptor of the directory ``path``."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def open_harmless(path: str) -> int:
    """An O_PATH descriptor of a read-only copy of the mount at ``path``, or of the mount where no copy can be made."""
    try:
        return clone_mount(path, HARMLESS)
    except OSError:
        return open_mount(path)


def clone_mount(path: str, attributes: int) -> int:
    """Copy the mount at the absolute ``path``, without those below it, and set MOUNT_ATTR_ ``attributes`` on the copy.

    The copy is mounted nowhere. Returns an O_PATH descriptor of it. Needs CAP_SYS_ADMIN and Linux 5.12.
    open_tree(2), mount_setattr(2).
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    fd = _system_call(_OPEN_TREE, ctypes.c_int(-1), os.fsencode(path), ctypes.c_uint(flags))
    change = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    try:
        size = ctypes.c_size_t(ctypes.sizeof(change))
        _system_call(_MOUNT_SETATTR, ctypes.c_int(fd), b"", ctypes.c_uint(_AT_EMPTY_PATH), change, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def join_user_namespace(fd: int) -> None:
    """Enter a user namespace below this one, with all capabilities in it and none outside. setns(2)."""
    _check(_LIBC.setns(ctypes.c_int(fd), ctypes.c_int(_CLONE_NEWUSER)))
