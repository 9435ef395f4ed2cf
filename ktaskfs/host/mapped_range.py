"""A range of a file, mapped once for all threads of a task."""

from __future__ import annotations

import contextlib
import errno
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ktaskfs.host.mapping import Mapping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.host.mapping import HoleGuard

REGION_PAGES: Final = 1 << 18
"""Pages mapped together; their page tables take 2 MiB, which the kernel frees when they are unmapped."""
REGION_MAX: Final = 1 << 45
"""Bytes mapped together at most (32 TiB): a quarter of the addresses that x86-64 gives a process."""


@dataclass
class _Region:
    mapping: Mapping
    users: int = 0


class MappedRange:
    """Bytes ``start`` to ``end`` of ``fd``, multiples of ``page_size``; reserves nothing, never changes the size.

    Mapping and unmapping exclude population and copies by other threads (mmap_lock): a mapping for each chunk cost two
    threads a tenth of their speed, and more with longer calls. So there is one mapping for all, or, for a long range,
    one for each region in use. A window that crosses regions, or lacks addresses (RLIMIT_AS), has a separate mapping.
    With a ``guard`` all are guarded. ``private`` as in Mapping. Raises OSError.
    """

    def __init__(
        self, fd: int, start: int, end: int, page_size: int, guard: HoleGuard | None, *, private: bool = False
    ) -> None:
        self._fd = fd
        self._start = start
        self._end = end
        self._page_size = page_size
        self._guard = guard
        self._private = private
        self._size = min(REGION_PAGES * page_size, REGION_MAX)
        self._lock = threading.Lock()
        self._regions: dict[int, _Region] = {}  # by number, with their users; guarded by _lock
        if start < end:
            with self.window(start, min(start + page_size, end)):
                pass  # an unmappable file fails here

    def _map(self, start: int, end: int) -> Mapping:
        mapping = Mapping(self._fd, start, end - start, reserve=False, private=self._private)
        try:
            if self._guard is not None:
                self._guard.guard(mapping)
        except BaseException:
            mapping.close()
            raise
        return mapping

    def _open(self, number: int) -> _Region:
        start = self._start + number * self._size
        return _Region(self._map(start, min(start + self._size, self._end)))

    @contextlib.contextmanager
    def window(self, start: int, end: int) -> Iterator[Mapping]:
        """A mapping with the bytes from ``start`` to ``end``; ``offset`` is its start."""
        number, last = (start - self._start) // self._size, (max(end - 1, start) - self._start) // self._size
        region = self._enter(number) if number == last and end <= self._end else None
        if region is None:
            page = self._page_size
            with self._map(start - start % page, -(-end // page) * page) as mapping:
                yield mapping
            return
        try:
            yield region.mapping
        finally:
            with self._lock:
                region.users -= 1

    def _enter(self, number: int) -> _Region | None:
        """Map a new region, and unmap unused ones. None: there is no room."""
        with self._lock:
            if number not in self._regions:
                for idle in [each for each, region in self._regions.items() if region.users == 0]:
                    self._regions.pop(idle).mapping.close()
                try:
                    self._regions[number] = self._open(number)
                except OSError as error:
                    if error.errno != errno.ENOMEM:
                        raise
                    return None
            region = self._regions[number]
            region.users += 1
            return region

    def close(self) -> None:
        """Unmap everything. No thread may use it."""
        with self._lock:
            while self._regions:
                self._regions.popitem()[1].mapping.close()
