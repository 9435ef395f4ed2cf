"""The C library, for system calls that the standard library lacks."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

LIBC: Final = ctypes.CDLL(None, use_errno=True)
"""Its calls drop the interpreter's lock. ``LIBC["name"]`` is a new object each time, with its own argument types."""


def bind(name: str, result: Any, *arguments: Any, library: ctypes.CDLL = LIBC) -> Any:
    """The call ``name`` with the types of its result and of its arguments."""
    function = library[name]
    function.restype = result
    function.argtypes = arguments
    return function


def checked(result: int) -> int:
    """``result`` of a call; raises OSError with its errno if the result is -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
