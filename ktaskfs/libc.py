"""The C library, for system calls that the standard library lacks."""

from __future__ import annotations

import ctypes
import os
from typing import Final

LIBC: Final = ctypes.CDLL(None, use_errno=True)
"""Its calls drop the interpreter's lock. ``LIBC["name"]`` is a new object each time, for types of its own."""


def checked(result: int) -> int:
    """``result`` of a call that has kept errno; raises OSError with that if the result is -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
