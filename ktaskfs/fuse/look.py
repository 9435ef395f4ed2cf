"""A child of the daemon that checks the mount: ``python -m ktaskfs.fuse.look MOUNTPOINT FILE NAME...``

It opens each NAME of the mount, sends the descriptors to its standard input, a socket, and reads FILE. While the daemon
holds the descriptors, the kernel caches these names, and walks to them without a request and without a lock. They
belong to a second, detached mount, so they do not make the first one busy. Without the right to make that mount it
sends nothing.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Final

from ktaskfs.mounts import clone_mount

DESCRIPTORS_MAX: Final = 250
"""Descriptors in one message, a little less than SCM_MAX_FD."""


def opened(mountpoint: str, names: list[str]) -> list[int]:
    """Descriptors of a second mount of ``mountpoint`` and of all ``names`` in it; none if that is not permitted."""
    try:
        root = clone_mount(mountpoint)
    except PermissionError:
        return []
    return [root, *(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root) for name in names)]


def main() -> None:
    mountpoint, file, *names = sys.argv[1:]
    try:
        with socket.socket(fileno=0) as daemon:
            found = opened(mountpoint, names) if names else []
            for first in range(0, len(found), DESCRIPTORS_MAX):
                socket.send_fds(daemon, [b"."], found[first : first + DESCRIPTORS_MAX])
        with open(os.path.join(mountpoint, file), "rb") as text:
            text.read()
    except OSError as error:
        sys.exit(f"{error.strerror}")


if __name__ == "__main__":
    main()
