"""Looking at files of memory with other programs, and writing to them."""

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


def allocated(path: Path | str) -> int:
    """Bytes of the file's pages, from stat(1)."""
    command = ["stat", "-L", "-c", "%b %B", str(path)]
    blocks, unit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(blocks) * int(unit)


def is_all(byte: int, path: Path | str, start: int, end: int) -> bool:
    """Whether every byte from ``start`` to ``end`` is ``byte``, as cmp(1) sees it. Reading fills no hole."""
    source = "/dev/zero" if byte == 0 else f"<(tr '\\0' '\\{byte:03o}' < /dev/zero)"
    command = f'cmp -n {end - start} -i {start}:0 "$0" {source}'
    return subprocess.run(["bash", "-c", command, str(path)], capture_output=True, check=False).returncode == 0


def dirty(path: Path | str, start: int, end: int) -> None:
    """Write 0xff over a range, through a mapping because hugetlbfs has no write(2); allocates missing pages."""
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 0) as mapped:
        os.close(fd)
        step = 1 << 20
        for position in range(start, end, step):
            mapped[position : min(position + step, end)] = b"\xff" * min(step, end - position)


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
    """As cmp(1) sees it."""
    command = ["cmp", "-n", str(length), "-i", f"{skip[0]}:{skip[1]}", str(first), str(second)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
