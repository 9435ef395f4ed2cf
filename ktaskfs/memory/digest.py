"""Digests that are combined from pieces, in any order: docs/reference/digests.md defines them."""

from __future__ import annotations

import functools
import hashlib
import importlib
import struct
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import InvalidValue, NotSupported
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

LEAF: Final = 1 << 20
"""Bytes in a leaf of a tree digest; the last one of a range may be shorter."""
_RUN: Final = struct.Struct("=QQL")
"""A run of a Crc32: its start, end and CRC."""
_NODE: Final = struct.Struct("=BQB")
"""Before a node of a TreeDigest: its height and index, and the length of the digest that follows."""
_LEAF_MARK: Final = b"\0"
_NODE_MARK: Final = b"\1"


def _optional(name: str) -> ModuleType | None:
    """Import an optional module now, because a worker cannot import later. Without it, its algorithms are refused."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


_isal: Final[Any] = _optional("isal.isal_zlib")
_xxhash: Final[Any] = _optional("xxhash")
_blake3: Final[Any] = _optional("blake3")


class Digest(ABC):
    """The digest of some pieces of a range. Positions count from the beginning of the range. Not thread-safe.

    A piece begins at a multiple of LEAF, and ends at one or with the range.
    """

    @abstractmethod
    def add(self, position: int, data: memoryview) -> None:
        """Enter at most one leaf; this drops the interpreter's lock while it calculates."""

    @abstractmethod
    def add_zeros(self, start: int, end: int) -> None:
        """Enter any number of zeros without reading them."""

    @abstractmethod
    def add_part(self, position: int, data: memoryview | bytes) -> None:
        """Enter a part of one leaf. The parts of a leaf must follow each other, with nothing else in between."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """The entered pieces, for ``merge`` in another process. Ends a leaf that is incomplete."""

    @abstractmethod
    def merge(self, other: bytes) -> None:
        """Enter the pieces of another digest of the same class, from its ``to_bytes``."""

    @abstractmethod
    def value(self) -> str:
        """The digest in hexadecimal digits, after the whole range was entered. An empty range has the digest of one
        empty leaf."""


class Crc32(Digest):
    """CRC-32 as of zlib, gzip and PNG; equal to zlib.crc32 over the whole range, by ISA-L's crc32_combine."""

    def __init__(self) -> None:
        self._runs: dict[int, tuple[int, int]] = {}
        """End and CRC of each separate run, by its start."""
        self._starts: dict[int, int] = {}
        """By its end, the start of each run."""

    def add(self, position: int, data: memoryview) -> None:
        self._enter(position, position + len(data), _isal.crc32(data))

    def add_zeros(self, start: int, end: int) -> None:
        self._enter(start, end, _crc_of_zeros(end - start))

    def add_part(self, position: int, data: memoryview | bytes) -> None:
        self._enter(position, position + len(data), _isal.crc32(data))

    def _enter(self, start: int, end: int, crc: int) -> None:
        if start in self._starts:
            before = self._starts.pop(start)
            _, crc_before = self._runs.pop(before)
            start, crc = before, _isal.crc32_combine(crc_before, crc, end - start)
        if end in self._runs:
            last, crc_after = self._runs.pop(end)
            crc, end = _isal.crc32_combine(crc, crc_after, last - end), last
        self._runs[start] = end, crc
        self._starts[end] = start

    def to_bytes(self) -> bytes:
        return b"".join(_RUN.pack(start, end, crc) for start, (end, crc) in self._runs.items())

    def merge(self, other: bytes) -> None:
        for start, end, crc in _RUN.iter_unpack(other):
            self._enter(start, end, crc)

    def value(self) -> str:
        ((_, crc),) = self._runs.values() or [(0, _isal.crc32(b""))]
        return f"{crc:08x}"


def _crc_of_zeros(count: int) -> int:
    """By doubling: a hole of any length takes microseconds."""
    crc, unit, size = 0, _isal.crc32(b"\0"), 1
    while count:
        if count & 1:
            crc = _isal.crc32_combine(crc, unit, size)
        unit, size, count = _isal.crc32_combine(unit, unit, size), size * 2, count >> 1
    return int(crc)


class TreeDigest(Digest):
    """A Merkle tree over leaves, as in RFC 6962, section 2.1. Holds one node for each complete subtree.

    ``new`` makes a hash object with ``update`` and ``digest`` from its first bytes. ``zero`` returns the digest of an
    all-zero subtree, by height above the leaves.
    """

    def __init__(self, new: Callable[[bytes], Any], zero: Callable[[int], bytes]) -> None:
        self._new = new
        self._zero = zero
        self._nodes: dict[tuple[int, int], bytes] = {}
        """Complete subtrees without their sibling, by height above the leaves and index at that height."""
        self._leaf: tuple[int, Any] | None = None
        """The index and the hash object of a leaf that is incomplete."""

    def add(self, position: int, data: memoryview | bytes) -> None:
        leaf = self._new(_LEAF_MARK)
        leaf.update(data)
        self._enter(0, position // LEAF, leaf.digest())

    def add_zeros(self, start: int, end: int) -> None:
        index, last = start // LEAF, end // LEAF
        while index < last:
            height = (last - index).bit_length() - 1
            if index:
                height = min(height, (index & -index).bit_length() - 1)
            self._enter(height, index >> height, self._zero(height))
            index += 1 << height
        if end % LEAF:
            self.add(last * LEAF, bytes(end % LEAF))

    def add_part(self, position: int, data: memoryview | bytes) -> None:
        index, at = divmod(position, LEAF)
        if self._leaf is None or self._leaf[0] != index:
            self._end_leaf()
            self._leaf = index, self._new(_LEAF_MARK)
        self._leaf[1].update(data)
        if at + len(data) == LEAF:
            self._end_leaf()

    def _end_leaf(self) -> None:
        if self._leaf is not None:
            index, leaf = self._leaf
            self._leaf = None
            self._enter(0, index, leaf.digest())

    def _join(self, left: bytes, right: bytes) -> bytes:
        digest: bytes = self._new(_NODE_MARK + left + right).digest()
        return digest

    def _enter(self, height: int, index: int, digest: bytes) -> None:
        while (other := self._nodes.pop((height, index ^ 1), None)) is not None:
            digest = self._join(other, digest) if index & 1 else self._join(digest, other)
            height, index = height + 1, index >> 1
        self._nodes[height, index] = digest

    def to_bytes(self) -> bytes:
        self._end_leaf()
        return b"".join(_NODE.pack(*place, len(digest)) + digest for place, digest in self._nodes.items())

    def merge(self, other: bytes) -> None:
        at = 0
        while at < len(other):
            height, index, size = _NODE.unpack_from(other, at)
            at += _NODE.size + size
            self._enter(height, index, other[at - size : at])

    def value(self) -> str:
        if not self._nodes:
            self.add(0, b"")
        rest = sorted(self._nodes, reverse=True)  # the lower a subtree is, the further to the right
        digest = self._nodes[rest.pop()]
        while rest:
            digest = self._join(self._nodes[rest.pop()], digest)
        return digest.hex()


class Parts:
    """Passes the bytes of one chunk to ``digest``. They come in order, in pieces of any size.

    Positions are those of a file; the positions of ``digest`` count from ``base``.
    """

    def __init__(self, digest: Digest, base: int) -> None:
        self._digest = digest
        self._base = base

    def add(self, position: int, data: memoryview | bytes) -> None:
        """Enter the next bytes."""
        for part in Span(position, position + len(data)).shifted(-self._base).windows(LEAF):
            first = part.start + self._base - position
            self._digest.add_part(part.start, data[first : first + part.size])

    def add_zeros(self, start: int, end: int) -> None:
        """Enter any number of zeros as the next bytes, without reading those of whole leaves."""
        extent = Span(start, end).shifted(-self._base)
        first = min(-(-extent.start // LEAF) * LEAF, extent.end)
        last = max(extent.end // LEAF * LEAF, first)
        self._add_few_zeros(Span(extent.start, first))
        if first < last:
            self._digest.add_zeros(first, last)
        self._add_few_zeros(Span(last, extent.end))

    def _add_few_zeros(self, part: Span) -> None:
        if part.size:
            self._digest.add_part(part.start, bytes(part.size))

    def to_bytes(self) -> bytes:
        """``to_bytes`` of the digest."""
        return self._digest.to_bytes()


def _tree_maker(new: Callable[[bytes], Any]) -> Callable[[], Digest]:
    """A maker of trees that share their digests of zeros: a task makes one tree for each chunk."""

    @functools.cache
    def zero(height: int) -> bytes:
        start = _NODE_MARK + zero(height - 1) * 2 if height else _LEAF_MARK + bytes(LEAF)
        digest: bytes = new(start).digest()
        return digest

    return lambda: TreeDigest(new, zero)


_SHORT: Final = {"crc32": 8, "xxh3": 32, "sha256": 64, "blake3": 64}
"""Hexadecimal digits of a value, by algorithm."""
ALGORITHMS: Final = tuple(_SHORT)
_MAKERS: Final[Mapping[str, tuple[str, Callable[[], Callable[[], Digest]] | None]]] = {
    "crc32": ("isal", _isal and (lambda: Crc32)),
    "xxh3": ("xxhash", _xxhash and (lambda: _tree_maker(_xxhash.xxh3_128))),
    "sha256": ("hashlib", lambda: _tree_maker(hashlib.sha256)),
    "blake3": ("blake3", _blake3 and (lambda: _tree_maker(_blake3.blake3))),
}
"""The package of each algorithm, and its maker of empty digests, if the package is installed."""


def digest_maker(algorithm: str) -> Callable[[], Digest]:
    """A maker of the empty digests of one task; raises NotSupported if the algorithm's package is missing."""
    package, make = _MAKERS[algorithm]
    if make is None:
        raise NotSupported(f"{algorithm} needs the Python package {package}, which is not installed here")
    return make()


def require_digest(text: str, algorithm: str) -> None:
    """Raises InvalidValue for text that is not a digest of the algorithm."""
    if len(text) != _SHORT[algorithm]:
        raise InvalidValue(f"a digest of {algorithm} has {_SHORT[algorithm]} hexadecimal digits, not {len(text)}")


def labelled(algorithm: str, value: str) -> str:
    """The line of a ``result``; it marks a tree digest, which differs from the output of the algorithm's tool."""
    return f"{algorithm}{'' if algorithm == 'crc32' else '-tree'} {value}\n"
