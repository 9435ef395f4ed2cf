"""Private memory to read into, which may be looked at: unlike a mapping of a file it never ends in SIGBUS."""

from __future__ import annotations

import ctypes
import threading
from pickle import PickleBuffer
from typing import Final

from ktaskfs.host.syscalls import page_size

LARGEST: Final = 8 << 20
"""Bytes that an operation may hold for each of its threads."""


class Buffer(threading.local):
    """``size`` bytes for each thread that asks for them, gone when the thread ends.

    They begin at a page, as O_DIRECT wants it (open(2)). Raises ValueError above LARGEST.
    """

    def __init__(self, size: int) -> None:
        if size > LARGEST:
            raise ValueError(f"a buffer of {size} bytes")
        memory = (ctypes.c_ubyte * (size + page_size()))()
        skip = -ctypes.addressof(memory) % page_size()
        self.size = size
        self.address = ctypes.addressof(memory) + skip
        self.view = PickleBuffer(memory).raw()[skip : skip + size]
        """Of plain bytes (format B), which ctypes alone does not make; it keeps the memory alive."""
