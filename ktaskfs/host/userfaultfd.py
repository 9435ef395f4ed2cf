"""userfaultfd(2): a descriptor that intercepts page faults. Names are those of linux/userfaultfd.h."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

from ktaskfs.host import syscalls

FEATURE_MISSING_HUGETLBFS: Final = 1 << 4
FEATURE_MISSING_SHMEM: Final = 1 << 5
FEATURE_SIGBUS: Final = 1 << 7

_USER_MODE_ONLY: Final = 1
_API_VERSION: Final = 0xAA
_UFFDIO_API: Final = 0xC018AA3F
_UFFDIO_REGISTER: Final = 0xC020AA00
_UFFDIO_COPY: Final = 0xC028AA03
_COPY_MODE_DONTWAKE: Final = 1
_REGISTER_MODE_MISSING: Final = 1


def create(features: int) -> int:
    """A userfaultfd for faults of user mode only, which every user may have; returns the descriptor.

    Raises EPERM if a seccomp filter forbids it, ENOSYS or EINVAL if the kernel lacks it or a feature.
    userfaultfd(2), ioctl_userfaultfd(2).
    """
    fd = syscalls.numbered("userfaultfd", os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY)
    try:
        fcntl.ioctl(fd, _UFFDIO_API, bytearray(struct.pack("=QQQ", _API_VERSION, features, 0)))
    except OSError:
        os.close(fd)
        raise
    return fd


def register(fd: int, address: int, length: int) -> None:
    """Let ``fd`` intercept faults on missing pages of the range, until it is unmapped."""
    request = struct.pack("=QQQQ", address, length, _REGISTER_MODE_MISSING, 0)
    fcntl.ioctl(fd, _UFFDIO_REGISTER, bytearray(request))


def copy(fd: int, address: int, source: int, length: int) -> int:
    """Fill missing pages of a registered range, which are not zeroed first, with a copy of the memory at ``source``.

    Returns the bytes of whole pages inserted before the first failure: the page exists already, lies past the end of
    the file, memory is short, or ``source`` has no page there. ioctl_userfaultfd(2), UFFDIO_COPY.
    """
    request = bytearray(struct.pack("=QQQQq", address, source, length, _COPY_MODE_DONTWAKE, 0))
    try:
        fcntl.ioctl(fd, _UFFDIO_COPY, request)
    except OSError:
        copied: int = struct.unpack_from("=q", request, 32)[0]  # or the negative errno
        return max(copied, 0)
    return length
