"""A mount for another process to serve: mount(2) with an open /dev/fuse, which is then passed on."""

from __future__ import annotations

import os
from typing import Final

from ktaskfs import mounts
from ktaskfs.errors import TargetError

DEVICE: Final = "/dev/fuse"
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8


def mount_device(mountpoint: str, name: str, *, allow_other: bool) -> int:
    """Mount a filesystem that shows as ``fuse.NAME`` of ``NAME``; returns the descriptor to serve.

    Requests wait until it is served, and fail once all copies of the descriptor are closed.
    Needs CAP_SYS_ADMIN. Raises TargetError. The options are those of fuse_parse_param() in fs/fuse/inode.c.
    """
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise TargetError.from_os(error, f"open {DEVICE}") from error
    options = [f"fd={fd}", "rootmode=40000", "user_id=0", "group_id=0", "default_permissions"]
    data = ",".join([*options, *(["allow_other"] if allow_other else [])])
    try:
        mounts.mount(name, mountpoint, f"fuse.{name}", MS_NOSUID | MS_NODEV | MS_NOEXEC, data)
    except OSError as error:
        os.close(fd)
        raise TargetError(f"cannot mount at {mountpoint}: {error.strerror}", errno=error.errno) from error
    return fd
