"""Release huge pages that were reserved for a file and never touched.

The kernel keeps them for the file after the mapping that reserved them ends. It releases them only when the file is
truncated, or an existing page freed (hugetlb_unreserve_pages in mm/hugetlb.c).
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
    from ktaskfs.memory.run_log import RunLog

SINGLY: Final = 1 << 30
"""Maximum bytes to touch and free if the file cannot be truncated: 0.2 s, in which others wait to open the file."""


def give_back(target: Target, ranges: Sequence[Span], freed: RunLog) -> int:
    """Release the reservation of ``ranges``, whole pages in order; returns the bytes for which that was impossible.

    Only while nobody else has the file open, who could own it. The file is truncated after its last existing page, and
    extended again. In other ranges, or with pages past the end, each missing page is touched and freed, if they are
    few, and if the control groups allow one more page. Existing pages stay, because their allocator is unknown. Pages
    that were ``freed`` are not reserved any more. Raises OSError.
    """
    with alone_with(target.fd) as alone:
        missing = [list(_missing(target, extent)) for extent in ranges]
        # For a memfd the kernel does not report other users.
        if alone and os.fstat(target.fd).st_nlink:
            if ranges and ranges[-1].end == target.size() and not _has_pages_past_end(target):
                missing[-1] = _cut(target, ranges[-1], missing[-1])
            missing = _touch(target, missing)
    return sum(run.size - sum(each.size for each in freed.within(*run)) for runs in missing for run in runs)


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
    """Whether the file has pages past its end (``keep_size=1``): truncation would free them."""
    size = target.size()
    return target.allocated() > size - sum(run.size for run in _missing(target, Span(0, size)))


def _cut(target: Target, extent: Span, missing: list[Span]) -> list[Span]:
    """Truncate the file after the last existing page in ``extent``, and extend it again; returns the rest."""
    end = max((run.end for run in gaps(iter(missing), extent.start, extent.end)), default=extent.start)
    if end < extent.end:
        page = target.page_size
        with Mapping(target.fd, extent.end - page, page, reserve=False):  # to make room for the next one
            os.ftruncate(target.fd, end)
        Mapping(target.fd, extent.end - page, page, reserve=False, extend=True).close()
    return [run for run in missing if run.end <= end]


def _touch(target: Target, missing: list[list[Span]]) -> list[list[Span]]:
    """Touch and free each page, if they are few; returns the rest."""
    runs = [run for each in missing for run in each]
    if sum(run.size for run in runs) > SINGLY:
        return missing
    page = target.page_size
    for number, run in enumerate(runs):
        with Mapping(target.fd, run.start, run.size, reserve=False) as mapping:
            for position in range(run.start, run.end, page):
                try:
                    mapping.populate_write(position - run.start, page)
                except OSError:  # the limit of a control group is below its use
                    return [[Span(position, run.end), *runs[number + 1 :]]]
                syscalls.punch_hole(target.fd, position, position + page)
    return []
