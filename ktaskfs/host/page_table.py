"""The pages of a process by address. Pages are the CPU's, usually of 4096 bytes."""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import struct
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.host import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE: Final = 1 << 2
PRESENT: Final = 1 << 3
SWAPPED: Final = 1 << 4
HUGE: Final = 1 << 6
"""Categories of PAGEMAP_SCAN; linux/fs.h."""

_PAGEMAP_SCAN: Final = 0xC0606610
_ARGUMENT: Final = struct.Struct("=12Q")
_WALK_END_AT: Final = 32
_REGION: Final = struct.Struct("=QQQ")
_REGIONS_MAX: Final = 4096
_ENTRY: Final = struct.Struct("=Q")
_ENTRY_PRESENT: Final = 1 << 63
_ENTRY_SWAPPED: Final = 1 << 62
_ENTRY_FILE: Final = 1 << 61
"""Bits of an entry of /proc/PID/pagemap; Documentation/admin-guide/mm/pagemap.rst."""


class Run(NamedTuple):
    """Addresses with equal pages; ``categories`` is a sum of FILE, PRESENT, SWAPPED and HUGE."""

    start: int
    end: int
    categories: int


class PageTable:
    """Finds the pages of a process. A page that is being moved looks swapped."""

    def __init__(self, fd: int) -> None:
        """``fd`` is an open /proc/PID/pagemap, which ``close`` closes."""
        self._page = syscalls.page_size()
        self._fd = fd
        self.tells_huge = self._can_scan()
        """Whether HUGE is known: since Linux 6.7."""

    def _can_scan(self) -> bool:
        try:
            self._scan(0, 0, ctypes.create_string_buffer(_REGION.size))
        except OSError:  # ENOTTY, or a filter
            return False
        return True

    def runs(self, start: int, end: int) -> Iterator[Run]:
        """The present or swapped pages between two addresses, in order; raises OSError."""
        return self._scanned(start, end) if self.tells_huge else self._read(start, end)

    def _scanned(self, start: int, end: int) -> Iterator[Run]:
        regions = ctypes.create_string_buffer(_REGIONS_MAX * _REGION.size)
        while start < end:
            count, start = self._scan(start, end, regions)
            for region in _REGION.iter_unpack(memoryview(regions)[: count * _REGION.size]):
                yield Run(*region)

    def _scan(self, start: int, end: int, regions: ctypes.Array[ctypes.c_char]) -> tuple[int, int]:
        """One PAGEMAP_SCAN: the number of regions found, and the end of the scan."""
        most = len(regions) // _REGION.size
        wanted = PRESENT | SWAPPED
        told = wanted | FILE | HUGE
        where = ctypes.addressof(regions)
        argument = bytearray(_ARGUMENT.pack(_ARGUMENT.size, 0, start, end, 0, where, most, 0, 0, 0, wanted, told))
        count = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, argument)
        stopped: int = struct.unpack_from("=Q", argument, _WALK_END_AT)[0]
        return count, stopped

    def _read(self, start: int, end: int) -> Iterator[Run]:
        """Read the states from pagemap entries."""
        entries = array.array("Q", os.pread(self._fd, (end - start) // self._page * 8, start // self._page * 8))
        run: Run | None = None
        for at, entry in zip(range(start, end, self._page), entries, strict=False):
            categories = PRESENT if entry & _ENTRY_PRESENT else SWAPPED if entry & _ENTRY_SWAPPED else 0
            categories |= FILE if categories and entry & _ENTRY_FILE else 0
            if run is not None and (run.end, run.categories) == (at, categories):
                run = run._replace(end=at + self._page)
                continue
            if run is not None:
                yield run
            run = Run(at, at + self._page, categories) if categories else None
        if run is not None:
            yield run

    def entry(self, address: int) -> int:
        """The entry of the page at an address, 0 where there is none. Raises OSError."""
        text = os.pread(self._fd, _ENTRY.size, address // self._page * _ENTRY.size)
        return int.from_bytes(text, sys.byteorder)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)
