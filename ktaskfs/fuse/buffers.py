"""What becomes of the memory that libfuse frees."""

from __future__ import annotations

import ctypes
from typing import Final

_M_MMAP_THRESHOLD: Final = -3
_THRESHOLD: Final = 128 << 10
"""Bytes; what the C library begins with (mallopt(3))."""


def give_back_what_is_freed() -> None:
    """Have the C library give large buffers back to the kernel as soon as they are freed.

    libfuse frees a buffer of 1 MiB. glibc then takes such sizes from the heap, where they stay in memory as far as
    they were ever written to. A C library without this option is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)
