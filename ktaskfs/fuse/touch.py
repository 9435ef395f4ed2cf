"""A child of the daemon that touches files of the mount: ``python -I -S touch.py ROOT``

inotify(7) only reports changes through the kernel, but the text of a file of the mount changes without that. So this
process sets the file's times, which the daemon ignores, and watchers get IN_MODIFY, as for files of kernfs
(kernfs_notify), and IN_ATTRIB, which systemd's PathChanged= needs.

Standard input is a socket: each message has paths below the directory of the descriptor ROOT, separated by NUL, and is
answered after the touch. The process ends with the socket. It may hang in a lock of the mount while somebody holds it;
then watchers get no events, but nobody else waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
from typing import Final

MESSAGE_MAX: Final = 65536
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
"""utimensat(2): set the current time, or leave it."""
MODIFY: Final = (UTIME_OMIT, UTIME_NOW)
ATTRIB: Final = (UTIME_NOW, UTIME_NOW)
"""Nanoseconds of access and modification time, by the resulting event (fsnotify_change, include/linux/fsnotify.h)."""


def main() -> None:
    root = int(sys.argv[1])
    utimensat = ctypes.CDLL(None)["utimensat"]
    times = [(ctypes.c_long * 4)(0, access, 0, modification) for access, modification in (MODIFY, ATTRIB)]
    # The daemon may end while an answer is on its way.
    with socket.socket(fileno=0) as daemon, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while message := daemon.recv(MESSAGE_MAX):
            for path in message.split(b"\0"):
                for each in times:
                    utimensat(root, path, each, 0)  # it may fail: a removed task has no watchers
            daemon.send(b".")


if __name__ == "__main__":
    os.chdir("/")
    main()
