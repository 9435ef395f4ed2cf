"""The pattern that ``fill`` writes and ``verify`` expects."""

from __future__ import annotations

import hashlib
import math
import os
import resource
from typing import Final

from ktaskfs.errors import InvalidValue
from ktaskfs.operations.base.parameters import Kind, parameter
from ktaskfs.operations.ranges._range import FileParameters
from ktaskfs.units import shown

LONGEST: Final = 4096
"""Bytes in a pattern at most."""
BLOCK: Final = 512 << 10
"""Minimum bytes of repeated patterns in a block. With up to 256 KiB more, it fits a CPU's own cache."""
CACHE_LINE: Final = 64
"""A copy between addresses that differ modulo a cache line takes up to twice as long (measured on an EPYC)."""
DEFAULT_LENGTH: Final = 4093
"""The largest prime number below LONGEST."""


def _parse(text: str) -> bytes:
    digits = text[2:] if text[:2] in ("0x", "0X") else text
    if not digits or digits.strip("0123456789abcdefABCDEF") or len(digits) % 2:
        raise InvalidValue(f"{shown(text)} is not a pattern: two hexadecimal digits for each byte, such as deadbeef")
    if len(digits) > 2 * LONGEST:
        raise InvalidValue(f"a pattern has at most {LONGEST} bytes, not {len(digits) // 2}")
    return bytes.fromhex(digits)


HEX: Final[Kind[bytes]] = Kind("hex", _parse, bytes.hex, absent="random")


class PatternParameters(FileParameters):
    """A range, and the pattern that is repeated in it."""

    pattern: bytes | None = parameter(
        HEX,
        "hexadecimal digits of the bytes to repeat from the start of the file (default: 4093 fixed random bytes; "
        "the prime length reveals memory at a wrong address)",
        default=None,
    )


def repeated(pattern: bytes | None) -> bytes:
    """A block of whole patterns and of whole cache lines.

    None stands for the default pattern: always the same bytes, of no regularity.
    """
    if pattern is None:
        pattern = hashlib.shake_128(b"ktaskfs").digest(DEFAULT_LENGTH)
    unit = math.lcm(len(pattern), CACHE_LINE)
    return pattern * (unit // len(pattern) * -(-BLOCK // unit))


def memory_file(content: bytes) -> int:
    """A descriptor of a file in memory with ``content``, that the kernel can copy from; raises OSError."""
    fd = os.memfd_create("ktaskfs-pattern", os.MFD_CLOEXEC)
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # the caller's limit is for files of the caller's
    try:
        done = 0
        while done < len(content):
            done += os.pwrite(fd, content[done:], done)
    except OSError:
        os.close(fd)
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    return fd
