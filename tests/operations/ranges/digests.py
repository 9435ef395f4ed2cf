"""The digests of docs/reference/digests.md, calculated in the simplest way."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING, Any

import blake3
import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable

HASHES: dict[str, Callable[[bytes], Any]] = {
    "xxh3": xxhash.xxh3_128,
    "sha256": hashlib.sha256,
    "blake3": blake3.blake3,
}


def tree(new: Callable[[bytes], Any], data: bytes) -> bytes:
    """The definition in docs/reference/digests.md, as short as possible."""
    if len(data) <= 1 << 20:
        return bytes(new(b"\0" + data).digest())
    left = 1 << 20
    while 2 * left < len(data):
        left *= 2
    return bytes(new(b"\1" + tree(new, data[:left]) + tree(new, data[left:])).digest())


def digest_of(data: bytes | bytearray, algorithm: str) -> str:
    """The line of a result."""
    if algorithm == "crc32":
        return f"crc32 {zlib.crc32(data):08x}\n"
    return f"{algorithm}-tree {tree(HASHES[algorithm], bytes(data)).hex()}\n"
