"""Mount system calls that the standard library lacks, and what libc needs to make them.

Raises OSError with the kernel's errno. The numbers are the same on all architectures (the calls came with Linux 5.2).
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

_OPEN_TREE: Final = 428
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_CLOEXEC: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_OPEN_TREE_CLONE: Final = 1
_AT_FDCWD: Final = -100


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    """mount(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [os.fsencode(each) for each in (source, target, kind)]
    _checked(libc.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(data)))


def clone_mount(path: str) -> int:
    """A descriptor of a second mount of what is mounted at ``path``, which is at no path; see open_tree(2).

    It does not make the first one busy. Needs CAP_SYS_ADMIN.
    """
    return _syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | os.O_CLOEXEC)


def mount_nowhere(kind: str) -> int:
    """A descriptor of a new mount of the filesystem ``kind``, which is at no path; see fsopen(2).

    Needs CAP_SYS_ADMIN.
    """
    context = _syscall(_FSOPEN, kind.encode(), _CLOEXEC)
    try:
        _syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _syscall(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)


def _syscall(*arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return _checked(libc.syscall(*(ctypes.c_long(each) if isinstance(each, int) else each for each in arguments)))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
