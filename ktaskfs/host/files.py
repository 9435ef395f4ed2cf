"""Small files and directories by name below an open directory, and what a file hides. Each function raises OSError."""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import Final

_PIECE: Final = 1 << 16


def read_file(path: str, directory: int | None = None, most: int = sys.maxsize) -> bytes:
    """The first ``most`` bytes of a file, below ``directory`` if that is given.

    Files of /proc have no size, and may return data in pieces.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        text = bytearray()
        while piece := os.read(fd, min(_PIECE, most - len(text))):
            text += piece
    finally:
        os.close(fd)
    return bytes(text)


def list_directory(path: str, directory: int) -> list[str]:
    """The names in a directory below ``directory``."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def hides_data(fd: int) -> bool:
    """Whether a regular file has data but reports size 0, like many virtual files."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size:
        return False
    try:
        return bool(os.pread(fd, 1, 0))
    except OSError as error:
        if error.errno == errno.ESPIPE:  # a stream
            return True
        raise
