"""A child of the daemon, which touches files of the mount: ``python -I -S touch.py ROOT``

inotify(7) tells of what goes through the kernel. What a file of the mount says changes without that; so this process
sets the file's times, which the daemon takes for nothing, and those who watch the file are told: IN_MODIFY, as of
files of kernfs (kernfs_notify), and IN_ATTRIB, which systemd's PathChanged= wants.

Standard input is a socket: each message has paths below the directory that the descriptor ROOT stands for, with a NUL
between two, and is answered when they were touched. The process ends with the socket. It may hang in a lock of the
mount for as long as somebody holds it; then nobody is told, and nobody else waits.
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
"""utimensat(2): the file's time becomes the present one, or stays."""
MODIFY: Final = (UTIME_OMIT, UTIME_NOW)
ATTRIB: Final = (UTIME_NOW, UTIME_NOW)
"""Nanoseconds of access and modification time, by what they bring (fsnotify_change, include/linux/fsnotify.h)."""


def main() -> None:
    root = int(sys.argv[1])
    utimensat = ctypes.CDLL(None)["utimensat"]
    times = [(ctypes.c_long * 4)(0, access, 0, modification) for access, modification in (MODIFY, ATTRIB)]
    # The daemon may end while an answer is on its way.
    with socket.socket(fileno=0) as daemon, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while message := daemon.recv(MESSAGE_MAX):
            for path in message.split(b"\0"):
                for each in times:
                    utimensat(root, path, each, 0)  # it may fail: a task that was removed has no watchers to be told
            daemon.send(b".")


if __name__ == "__main__":
    os.chdir("/")
    main()
