"""Three ways to allocate the missing pages of a range, one for each kind of place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from ktaskfs.host import syscalls
from ktaskfs.host.mapped_range import MappedRange
from ktaskfs.memory.tmpfs import mapped_windows
from ktaskfs.span import Span

if TYPE_CHECKING:
    from ktaskfs.host.mapping import Mapping
    from ktaskfs.host.target import Target


class Allocator(ABC):
    """Allocates and zeroes pages, from several threads at a time."""

    @abstractmethod
    def populate(self, start: int, end: int) -> None:
        """Allocate and zero the pages that are missing from ``start`` to ``end``, whole pages. Raises OSError."""

    def close(self) -> None:
        """Unmap everything; the pages stay."""
        return


class NoPages(Allocator):
    """Allocates nothing: for a file that is empty or gone."""

    def populate(self, start: int, end: int) -> None:
        return


class ReservedPages(Allocator):
    """Pages of hugetlbfs, through a mapping for which the missing ones are reserved."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping

    def populate(self, start: int, end: int) -> None:
        self._mapping.populate_write(start - self._mapping.offset, end - start)

    def close(self) -> None:
        self._mapping.close()


class TmpfsPages(Allocator):
    """Pages of tmpfs, window by window."""

    def __init__(self, target: Target, extent: Span) -> None:
        """Raises OSError."""
        self._pages = MappedRange(target.fd, extent.start, extent.end, target.page_size, None)

    def populate(self, start: int, end: int) -> None:
        with self._pages.window(start, end) as mapping:
            for _, pages in mapped_windows(mapping, Span(start, end)):
                mapping.populate_write(pages.start - mapping.offset, pages.size)

    def close(self) -> None:
        self._pages.close()


class PagesPastEnd(Allocator):
    """Pages past the end of a file, which no mapping reaches, by fallocate(2)."""

    def __init__(self, target: Target) -> None:
        self._fd = target.fd

    def populate(self, start: int, end: int) -> None:
        syscalls.fallocate(self._fd, syscalls.FALLOC_FL_KEEP_SIZE, start, end - start)
