"""Functions that only a hand may call (``host.hands``): they map a file and touch its memory directly.

A touch can end in SIGBUS at any moment: somebody truncates the file or punches a hole, or the memory is broken. A copy
by the kernel returns EFAULT instead, but takes longer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Final

from ktaskfs.host import syscalls
from ktaskfs.host.hands import Hands
from ktaskfs.host.mapping import HoleGuard, Mapping
from ktaskfs.host.page_cache import cached_bytes
from ktaskfs.host.target import FilesystemType, Target
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from ktaskfs.host.buffer import Block
    from ktaskfs.host.kernel import Kernel

WORTH: Final = 1 << 30
"""Bytes of work per forked process: its fork and end take a tenth of the time that it saves."""
WORTH_IN_CACHE: Final = 256 << 20
"""The same limit for files in the page cache. A touch saves the copy into a buffer; hands gain nothing below twice
as much."""
CACHE_WINDOW: Final = 8 << 20
"""Bytes of a cached file that a hand has mapped at a time: for the OOM killer they are the hand's own memory."""


class TouchedFile:
    """An open file of huge pages in a hand. All pages exist and are mapped before a touch; no hole is filled."""

    def __init__(self, target: Target, *, write: bool) -> None:
        self._target = target
        self._write = write
        self._guard: HoleGuard | None = None

    @property
    def fd(self) -> int:
        """Its descriptor."""
        return self._target.fd

    @property
    def suits(self) -> bool:
        """Whether hands work on it."""
        return self._target.filesystem is FilesystemType.HUGETLBFS

    @contextlib.contextmanager
    def mapped(self, start: int, end: int) -> Iterator[int]:
        """The address of the byte at ``start``, with all pages up to ``end`` in memory.

        Raises OSError for a hole, past the end of the file, or without userfaultfd(2).
        """
        if self._guard is None:
            self._guard = HoleGuard()
        whole = Span(start, end).widened(self._target.page_size)
        with Mapping(self._target.fd, whole.start, whole.size, reserve=False, private=not self._write) as mapping:
            self._guard.guard(mapping)
            if self._write:
                mapping.populate_write(0, whole.size)
            else:
                mapping.populate_read(0, whole.size)
            yield mapping.address + start - whole.start


def open_hands(
    kernel: Kernel, size: int, touch: Callable[[int, int], bytes], files: Sequence[TouchedFile]
) -> Hands | None:
    """Hands for ``size`` bytes of work on ``files``; None if they do not pay off, or a file does not suit."""
    most = size // WORTH - 1  # one process forks the others
    if most < 1 or not all(file.suits for file in files):
        return None
    return Hands(kernel, touch, {file.fd for file in files}, most)


def open_tree_hands(
    kernel: Kernel, size: int, touch: Callable[[int, int], bytes], descriptors: Collection[int]
) -> Hands | None:
    """Hands for ``size`` bytes of cached files, which they open below ``descriptors``; None if they do not pay off."""
    most = size // WORTH_IN_CACHE - 1
    return None if most < 1 else Hands(kernel, touch, {*descriptors, kernel.proc}, most)


def cached_data(fd: int, end: int) -> Iterator[memoryview]:
    """The first ``end`` bytes of a file in pieces; each is mapped until the next one is asked for.

    Raises OSError: EAGAIN if the page cache may not have all of it (page faults read ahead less than read(2)), or if no
    disk holds the file (in a tmpfs the touch of a page that was never written makes it data).
    """
    cached = cached_bytes(fd, 0, end, overlay=False) if os.major(os.fstat(fd).st_dev) else None
    if cached is None or cached.resident < end:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    for window in Span(0, end).windows(CACHE_WINDOW):
        length = window.widened(syscalls.page_size()).size
        with Mapping(fd, window.start, length, reserve=False, private=True) as mapping:
            yield memory_at(mapping.address, window.size)


def write_repeated(address: int, length: int, block: Block, at: int) -> None:
    """Write ``block`` repeatedly, beginning with the byte at ``at``.

    memmove(3), or memset(3) for a single byte: some processors need half the time for that.
    """
    if block.size == 1:
        ctypes.memset(address, memory_at(block.address, 1)[0], length)
        return
    for start, at_block, count in _rounds(address, length, block, at):
        ctypes.memmove(start, at_block, count)


def is_repeated(address: int, length: int, block: Block, at: int) -> bool:
    """Whether memory equals the output of ``write_repeated``. memcmp(3)."""
    return all(syscalls.same_bytes(*each) for each in _rounds(address, length, block, at))


def _rounds(address: int, length: int, block: Block, at: int) -> Iterator[tuple[int, int, int]]:
    """The address, the address in the block, and the bytes of each round of the block."""
    done = 0
    while done < length:
        count = min(length - done, block.size - at)
        yield address + done, block.address + at, count
        done, at = done + count, 0


def memory_at(address: int, length: int) -> memoryview:
    """Memory as plain bytes."""
    return PickleBuffer((ctypes.c_ubyte * length).from_address(address)).raw()
