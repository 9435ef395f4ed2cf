"""Private memory for reads: unlike a mapping of a file it never causes SIGBUS."""

from __future__ import annotations

import ctypes
import threading
from pickle import PickleBuffer
from typing import Final

from ktaskfs.host.syscalls import page_size

LARGEST: Final = 8 << 20
"""Bytes that an operation may hold for each of its threads."""


class Buffer(threading.local):
    """``size`` bytes per thread, page-aligned for O_DIRECT (open(2)), freed at the end of the thread. Raises ValueError
    above LARGEST.
    """

    def __init__(self, size: int) -> None:
        if size > LARGEST:
            raise ValueError(f"a buffer of {size} bytes")
        self.size = size
        self.address, self.view = _pages(size)


class Block:
    """A copy of ``data`` for all threads, page-aligned like mapped bytes of a file."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self.address, self._view = _pages(self.size)
        self._view[:] = data


def _pages(size: int) -> tuple[int, memoryview]:
    """The address of ``size`` bytes that begin at a page, and a view that keeps them alive.

    The view is of plain bytes (format B), which ctypes does not create directly.
    """
    memory = (ctypes.c_ubyte * (size + page_size()))()
    skip = -ctypes.addressof(memory) % page_size()
    return ctypes.addressof(memory) + skip, PickleBuffer(memory).raw()[skip : skip + size]
