"""The pages of a file of memory by number: which may exist, and on which NUMA node each lies."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from ktaskfs.host.mapping import Mapping
from ktaskfs.host.presence import data_extents, node_of_pages
from ktaskfs.host.target import FilesystemType
from ktaskfs.memory.guarded_pages import require_guard
from ktaskfs.memory.target_errors import truncated
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.host.target import Target

WINDOW: Final = 1024
"""Pages mapped at a time; 4 MiB of tmpfs, which count as the worker's resident memory."""


class FilePages:
    """Examines pages of ``target`` in windows. A HoleGuard guards every mapping, so that no page is allocated.

    ``private`` mappings are read-only, and work on a file that is open read-only. Raises NotSupported
    without userfaultfd.
    """

    def __init__(self, target: Target, *, private: bool = False) -> None:
        self._target = target
        self._private = private
        self._guard = require_guard(target)

    def require(self, end: int) -> None:
        """Raises TargetError if the file no longer has the last page before ``end``."""
        if self._target.size() <= (end - 1) * self._target.page_size:
            raise truncated(self._target)

    def windows(self, start: int, end: int) -> Iterator[Span]:
        """The windows from page ``start`` to ``end`` that may contain pages. Raises OSError."""
        target, page = self._target, self._target.page_size
        if target.filesystem is FilesystemType.HUGETLBFS:  # the filesystem does not report its pages
            if target.allocated():
                yield from Span(start, end).windows(WINDOW)
            return
        for data, hole in data_extents(target.fd, start * page, end * page):
            yield from Span(data // page, -(-hole // page)).windows(WINDOW)

    @contextlib.contextmanager
    def mapped(self, window: Span) -> Iterator[tuple[Mapping, list[int]]]:
        """The mapped pages of a window, and the NUMA node of each, HOLE for a missing page. Raises OSError."""
        page = self._target.page_size
        low, high = window.start * page, window.end * page
        with Mapping(self._target.fd, low, high - low, reserve=False, private=self._private) as mapping:
            self._guard.guard(mapping)
            yield mapping, node_of_pages(mapping, low, high, page)

    def close(self) -> None:
        """Close the guard."""
        self._guard.close()
