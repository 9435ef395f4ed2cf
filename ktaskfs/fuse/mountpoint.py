"""What is mounted at a path, and how to unmount it. Nothing here looks into a mount, which may not answer."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import select
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.fuse import syscalls

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import FileIO

MOUNTINFO: Final = "/proc/self/mountinfo"
"""The mounts of this namespace; see proc_pid_mountinfo(5)."""
CONNECTIONS: Final = "/sys/fs/fuse/connections"
"""Where fusectl is mounted (Documentation/filesystems/fuse/fuse.rst)."""

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MountedFilesystem:
    """A filesystem that is mounted: ``major:minor`` of its device, and its type."""

    device: str
    kind: str


def filesystems_at(path: str, otherwise: Sequence[MountedFilesystem] = ()) -> list[MountedFilesystem]:
    """The filesystems mounted at ``path``, the uppermost last.

    Returns ``otherwise`` if no descriptor is left to look with.
    """
    try:
        with open(MOUNTINFO, "rb") as file:
            lines = file.readlines()
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        return list(otherwise)
    wanted = os.fsencode(path)
    found = []
    for line in lines:
        of_mount, _, of_filesystem = line.partition(b" - ")
        device, _, at = of_mount.split(b" ", 5)[2:5]
        if _ESCAPE.sub(lambda octal: bytes([int(octal[1], 8)]), at) == wanted:
            found.append(MountedFilesystem(device.decode(), of_filesystem.split(b" ", 1)[0].decode()))
    return found


async def until_gone(filesystem: MountedFilesystem) -> None:
    """Return when ``filesystem`` is not mounted anywhere in this mount namespace.

    It may still be mounted in others: a user can make one and keep it. A mount that was moved or covered is there.
    """
    device = f" {filesystem.device} ".encode()
    with _mounts() as mounts, select.epoll() as changes:
        # trio waits for EPOLLIN alone, which always holds here.
        changes.register(mounts, select.EPOLLPRI | select.EPOLLERR)
        while device in mounts.readall():
            await trio.lowlevel.wait_readable(changes.fileno())
            changes.poll(0)
            mounts.seek(0)


def _mounts() -> FileIO:
    return open(MOUNTINFO, "rb", buffering=0)


def abort(filesystem: MountedFilesystem) -> None:
    """Sever the connection of a FUSE filesystem to its server: requests fail at once, whoever waits for whom.

    Where fusectl is not mounted that takes CAP_SYS_ADMIN. A failure is logged.
    """
    file = f"{filesystem.device.partition(':')[2]}/abort"
    try:
        with contextlib.suppress(FileNotFoundError):  # fusectl is not mounted, or the filesystem is gone
            _write(f"{CONNECTIONS}/{file}", None)
            return
        connections = syscalls.mount_nowhere("fusectl")
        try:
            _write(file, connections)
        finally:
            os.close(connections)
    except OSError as error:
        log.warning("the connection of the old mount cannot be severed: %s", error.strerror)


def _write(path: str, directory: int | None) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)


def detach(path: str) -> None:
    """Unmount the uppermost filesystem at ``path``, served or not. The command prints its own errors."""
    command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    subprocess.run([*command, path], check=False)
