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
        memory = (ctypes.c_ubyte * (size + page_size()))()
        skip = -ctypes.addressof(memory) % page_size()
        self.size = size
        self.address = ctypes.addressof(memory) + skip
        self.view = PickleBuffer(memory).raw()[skip : skip + size]
        """A memoryview of plain bytes (format B), which ctypes does not create directly; it keeps the memory alive."""
