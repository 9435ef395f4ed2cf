"""The return of libfuse's freed memory to the kernel."""

from __future__ import annotations

import ctypes
from typing import Final

_M_MMAP_THRESHOLD: Final = -3
_THRESHOLD: Final = 128 << 10
"""Bytes; the C library's initial value (mallopt(3))."""


def give_back_what_is_freed() -> None:
    """Make the C library return large freed buffers to the kernel at once.

    libfuse frees buffers of 1 MiB. glibc would then take such sizes from the heap, where written pages stay in memory.
    Does nothing with a C library without this option.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)
