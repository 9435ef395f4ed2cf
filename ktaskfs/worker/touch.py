"""A process that touches files of the mount, so that inotify(7) reports their changes.

inotify(7) only reports changes through the kernel, but the text of a file of the mount changes without that. So this
process sets the file's times, which the daemon ignores, and watchers get IN_MODIFY, as for files of kernfs
(kernfs_notify), and IN_ATTRIB, which systemd's PathChanged= needs.

It may hang in a lock of the mount while somebody holds it; then watchers get no events, but nobody else waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
from typing import Final

import setproctitle

from ktaskfs.libc import LIBC
from ktaskfs.worker.seal import keep_only

MESSAGE_MAX: Final = 65536
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
"""utimensat(2): set the current time, or leave it."""
MODIFY: Final = (UTIME_OMIT, UTIME_NOW)
ATTRIB: Final = (UTIME_NOW, UTIME_NOW)
"""Nanoseconds of access and modification time, by the resulting event (fsnotify_change, include/linux/fsnotify.h)."""


def touch(root: int, sock: int) -> None:
    """Serve until the end of ``sock``: each message has paths below the directory ``root``, separated by NUL, and is
    answered after the touch. It keeps no other descriptors."""
    keep_only({root, sock}, 2)
    setproctitle.setproctitle("ktaskfs: toucher")
    utimensat = LIBC["utimensat"]
    times = [(ctypes.c_long * 4)(0, access, 0, modification) for access, modification in (MODIFY, ATTRIB)]
    # The daemon may end while an answer is on its way.
    with socket.socket(fileno=sock) as daemon, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while message := daemon.recv(MESSAGE_MAX):
            for path in message.split(b"\0"):
                for each in times:
                    utimensat(root, path, each, 0)  # it may fail: a removed task has no watchers
            daemon.send(b".")
