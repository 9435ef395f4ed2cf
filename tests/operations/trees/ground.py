"""Trees of files on a disk, their pages in the page cache, and the results of tasks on them."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import threading
from typing import TYPE_CHECKING, Any

from ktaskfs.ktask import Job
from ktaskfs.libc import LIBC, checked
from tests.support.forked import run_forked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from ktaskfs.operations.base.plan import Plan

SIZE = 256 << 10


def filesystem_of(path: Path) -> str:
    """As stat(1) calls it."""
    command = ["stat", "-f", "-c", "%T", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(SIZE))
    return path


def cached(path: Path) -> int:
    """Bytes in memory, by a mapping: fincore(1) of util-linux 2.41 finds no pages of an overlay's file."""
    size = path.stat().st_size
    if size == 0:
        return 0
    seen = bytearray(-(-size // mmap.PAGESIZE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapping:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        flags = (ctypes.c_char * len(seen)).from_buffer(seen)
        checked(LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), flags))
    return sum(each & 1 for each in seen) * mmap.PAGESIZE


def result_of(plan: Plan) -> dict[str, int]:
    return parsed(plan.finish(Job(plan.nodes, plan.control).run()))


def parsed(text: str) -> dict[str, int]:
    """The counts, without the table of skipped files."""
    lines = text.partition("reason path\n")[0].splitlines()
    return {key: int(value) for key, value in map(str.split, lines)}


def as_nobody(function: Callable[[], Any]) -> Any:
    """The result of ``function`` in a process of another user."""

    def body() -> Any:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        return function()

    return run_forked(body)


def overlapping_sends(patch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Watch os.sendfile: the arguments of each call that a thread makes during that of another one, as they come."""
    alone, overlaps, real = threading.Lock(), list[tuple[int, ...]](), os.sendfile

    def sendfile(*arguments: int) -> int:
        if not alone.acquire(blocking=False):
            overlaps.append(arguments)
            return real(*arguments)
        try:
            return real(*arguments)
        finally:
            alone.release()

    patch.setattr(os, "sendfile", sendfile)
    return overlaps
