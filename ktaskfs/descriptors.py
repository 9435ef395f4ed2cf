"""Closes descriptors that a forked process must not have."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import TYPE_CHECKING, Final

from ktaskfs.libc import LIBC, checked

if TYPE_CHECKING:
    from collections.abc import Collection

_CLOSE_RANGE: Final = 436
"""The number of close_range(2), the same on all architectures; glibc has a wrapper since 2.34."""
_FD_MAX: Final = 2**32 - 1


def close_all_but(kept: Collection[int]) -> None:
    """Close all descriptors except the standard streams and ``kept``.

    Without close_range(2) (before Linux 5.9, or behind a filter) it needs /proc: ``os.closerange`` would then try each
    possible number, and there may be a thousand million of them.
    """
    first = 3
    try:
        for fd in sorted(each for each in kept if each > 2):
            if first < fd:
                _close_range(first, fd - 1)
            first = fd + 1
        _close_range(first, _FD_MAX)
    except OSError:
        _close_listed(kept)


def _close_range(first: int, last: int) -> None:
    call = LIBC["syscall"]
    call.argtypes = (ctypes.c_long, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint)
    checked(call(_CLOSE_RANGE, first, last, 0))


def _close_listed(kept: Collection[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):  # the descriptor of the listing
                os.close(int(name))
