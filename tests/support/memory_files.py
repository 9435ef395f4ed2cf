"""Looking at files of memory without our own code, and writing to them."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

HUGE = 2 << 20
TIB = 1 << 40
STEP = 1 << 20
"""Bytes to read or write at a time."""


def allocated(path: Path | str) -> int:
    """Bytes of the file's pages, from stat(1)."""
    command = ["stat", "-L", "-c", "%b %B", str(path)]
    blocks, unit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(blocks) * int(unit)


def repeats(pattern: bytes, path: Path | str, start: int, end: int) -> bool:
    """Whether the bytes from ``start`` to ``end`` are ``pattern`` again and again, the first one at ``start``.

    Reading fills no hole.
    """
    wanted = pattern * max(1, STEP // len(pattern))
    with open(path, "rb", buffering=0) as file:
        for position in range(start, end, len(wanted)):
            part = wanted[: end - position]
            if os.pread(file.fileno(), len(part), position) != part:
                return False
    return True


def is_all(byte: int, path: Path | str, start: int, end: int) -> bool:
    """Whether every byte from ``start`` to ``end`` is ``byte``. Reading fills no hole."""
    return repeats(bytes([byte]), path, start, end)


def dirty(path: Path | str, start: int, end: int) -> None:
    """Write 0xff over a range, through a mapping because hugetlbfs has no write(2); allocates missing pages."""
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 0) as mapped:
        os.close(fd)
        ones = b"\xff" * STEP
        for position in range(start, end, STEP):
            mapped[position : min(position + STEP, end)] = ones[: end - position]


def write_bytes(path: Path | str, data: bytes | bytearray, offset: int = 0) -> None:
    """Put ``data`` at ``offset``, a multiple of 2 MiB, of a file that is made or extended as need be."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(fd).st_size < offset + len(data):
            unit = os.fstatvfs(fd).f_bsize
            os.ftruncate(fd, -(-(offset + len(data)) // unit) * unit)
        with mmap.mmap(fd, len(data), offset=offset) as mapped:
            mapped[:] = data
    finally:
        os.close(fd)


def make_dirty(path: Path, length: int) -> None:
    """A file of ``length`` bytes that are all 0xff."""
    path.touch()
    os.truncate(path, length)
    dirty(path, 0, length)


def punch(path: Path, start: int, length: int) -> None:
    """A hole, as by fallocate(1)."""
    subprocess.run(["fallocate", "-p", "-o", str(start), "-l", str(length), str(path)], check=True)


def content(size: int, seed: int = 1) -> bytes:
    """Bytes of which no two pages are alike."""
    return random.Random(seed).randbytes(size)


def same(first: Path | str, second: Path | str, length: int, skip: tuple[int, int] = (0, 0)) -> bool:
    """Whether ``length`` bytes are the same, after those to skip in each file; fewer if both files end there."""
    with open(first, "rb", buffering=0) as one, open(second, "rb", buffering=0) as other:
        for position in range(0, length, STEP):
            size = min(STEP, length - position)
            part = os.pread(one.fileno(), size, skip[0] + position)
            if part != os.pread(other.fileno(), size, skip[1] + position):
                return False
            if len(part) < size:
                break
    return True
