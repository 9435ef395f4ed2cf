"""Huge pages that were set aside for a file and never touched: how they are given back.

The kernel keeps them for the file when the mapping for which it has reserved them goes. It lets go of them only where
the file is cut, or where a page that is there is freed (hugetlb_unreserve_pages in mm/hugetlb.c).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from ktaskfs.host import syscalls
from ktaskfs.host.holders import alone_with
from ktaskfs.host.mapping import HoleGuard, Mapping
from ktaskfs.host.presence import gaps, missing_pages
from ktaskfs.memory.guarded_pages import map_guarded
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ktaskfs.host.target import Target

SINGLY: Final = 1 << 30
"""Bytes that are touched and freed at most, where the file cannot be cut: 0.2 s, while others wait to open the file."""


def give_back(target: Target, ranges: Sequence[Span]) -> int:
    """Give back what is set aside in ``ranges``, whole pages in order; returns bytes for which that was impossible.

    Only while nobody else has the file open, for whom it could be. The end of the file is cut off after the last page
    that is there, and the file then gets its size again. Of other ranges, and where there are pages past the end, each
    missing page is touched and freed, if they are few, and as far as the control groups allow one more page. A page
    that is there stays: nobody knows who has allocated it. Raises OSError.
    """
    with alone_with(target.fd) as alone:
        missing = [list(_missing(target, extent)) for extent in ranges]
        # Of a memfd the kernel does not tell whether others have it.
        if alone and os.fstat(target.fd).st_nlink:
            if ranges and ranges[-1].end == target.size() and not _has_pages_past_end(target):
                missing[-1] = _cut(target, ranges[-1], missing[-1])
            missing = _touch(target, missing)
    return sum(run.size for runs in missing for run in runs)


def _missing(target: Target, extent: Span) -> Iterator[Span]:
    if target.allocated() == 0:
        yield extent
        return
    pages = map_guarded(target, extent, HoleGuard())
    try:
        yield from missing_pages(pages.pages, extent.start, extent.end, target.page_size)
    finally:
        pages.close()


def _has_pages_past_end(target: Target) -> bool:
    """Whether there are more pages than the file's size has room for (``keep_size=1``): a cut would free them."""
    size = target.size()
    return target.allocated() > size - sum(run.size for run in _missing(target, Span(0, size)))


def _cut(target: Target, extent: Span, missing: list[Span]) -> list[Span]:
    """Cut the file off after the last page in ``extent`` that is there, and extend it again; returns what is left."""
    end = max((run.end for run in gaps(iter(missing), extent.start, extent.end)), default=extent.start)
    if end < extent.end:
        page = target.page_size
        with Mapping(target.fd, extent.end - page, page, reserve=False):  # so that there is room for the next one
            os.ftruncate(target.fd, end)
        Mapping(target.fd, extent.end - page, page, reserve=False, extend=True).close()
    return [run for run in missing if run.end <= end]


def _touch(target: Target, missing: list[list[Span]]) -> list[list[Span]]:
    """Have each page come and go, if they are few; returns what is left."""
    runs = [run for each in missing for run in each]
    if sum(run.size for run in runs) > SINGLY:
        return missing
    page = target.page_size
    for number, run in enumerate(runs):
        with Mapping(target.fd, run.start, run.size, reserve=False) as mapping:
            for position in range(run.start, run.end, page):
                try:
                    mapping.populate_write(position - run.start, page)
                except OSError:  # the limit of a control group is below what is in use
                    return [[Span(position, run.end), *runs[number + 1 :]]]
                syscalls.punch_hole(target.fd, position, position + page)
    return []
