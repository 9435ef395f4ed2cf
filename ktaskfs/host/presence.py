"""Find the pages of a file without allocating any.

tmpfs answers lseek(2) with SEEK_DATA and SEEK_HOLE. hugetlbfs supports neither, and mincore(2) only sees page
tables; there each page is tested under a HoleGuard.
"""

from __future__ import annotations

import errno
import heapq
import os
from typing import TYPE_CHECKING, Final

from ktaskfs.host import numa_pages, syscalls
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ktaskfs.host.mapped_range import MappedRange
    from ktaskfs.host.mapping import Mapping

LOOK: Final = 1 << 20
"""Bytes to examine at a time."""
TOGETHER: Final = 512
"""Pages to examine in one call, which is enough if all exist: 0.4 µs for a page, where a call for each takes 5 µs."""
HOLE: Final = -1
"""Instead of a node: there is no page."""


def missing_pages(pages: MappedRange, start: int, end: int, page_size: int) -> Iterator[Span]:
    """The runs of missing pages from ``start`` to ``end`` of a guarded range, in order."""
    with pages.window(start, end) as mapping:
        position = start
        while position < end:
            window = min(position + TOGETHER * page_size, end)
            if _all_exist(mapping, position, window):
                position = window
                continue
            while position < window:
                present = next_page(mapping, position, end, page_size)
                if position < present:
                    yield Span(position, present)
                position = present + page_size


def _all_exist(mapping: Mapping, start: int, end: int) -> bool:
    """Whether no page is missing from ``start`` to ``end`` of a guarded mapping of hugetlbfs.

    Other threads of the interpreter run meanwhile, unlike in ``next_page``. Raises OSError for an existing page that
    is not accessible.
    """
    try:
        mapping.populate_read(start - mapping.offset, end - start)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return False
    return True


def zero_pages(fd: int, start: int, end: int, page_size: int) -> Iterator[Span]:
    """The runs of pages from ``start`` to ``end``, both multiples of ``page_size``, that read as zeros, including
    holes."""
    run = start
    for position in range(start, end, max(page_size, LOOK)):
        stop = min(position + max(page_size, LOOK), end)
        if reads_as_zeros(fd, position, stop):
            continue
        for page in range(position, stop, page_size):
            if not reads_as_zeros(fd, page, page + page_size):
                if run < page:
                    yield Span(run, page)
                run = page + page_size
    if run < end:
        yield Span(run, end)


def reads_as_zeros(fd: int, start: int, end: int) -> bool:
    """Whether all bytes from ``start`` to ``end``, or to the end of the file, are zeros."""
    zeros = bytes(LOOK)
    for position in range(start, end, LOOK):
        data = os.pread(fd, min(LOOK, end - position), position)  # less at the end of the file
        if data != zeros[: len(data)]:
            return False
    return True


def next_page(mapping: Mapping, position: int, end: int, page_size: int) -> int:
    """The first existing page at or after ``position`` in a guarded mapping of hugetlbfs; ``end`` if there is none.

    ``position`` and ``end`` are multiples of ``page_size``. Raises OSError for an existing page that is not accessible.
    """
    at, stop = mapping.address - mapping.offset + position, mapping.address - mapping.offset + end
    while at < stop:
        number = syscalls.try_madvise(at, page_size, syscalls.MADV_POPULATE_READ)
        if number == 0:
            break
        if number == errno.EFAULT:
            at += page_size
        elif number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return at - mapping.address + mapping.offset


def node_of_pages(mapping: Mapping, start: int, end: int, page_size: int) -> list[int]:
    """The NUMA node of each page from ``start`` to ``end`` of a guarded mapping, HOLE for a missing page.

    Raises OSError for an existing page that is not accessible. It builds the whole list: ask for a few thousand pages.
    """
    count = (end - start) // page_size
    if not _all_exist(mapping, start, end):
        position = next_page(mapping, start, end, page_size)
        if position == end:
            return [HOLE] * count
        while position < end:
            position = next_page(mapping, position + page_size, end, page_size)
    base = mapping.address - mapping.offset
    nodes = numa_pages.page_nodes(range(base + start, base + end, page_size))
    return [max(node, HOLE) for node in nodes]  # -ENOENT: not mapped, because it does not exist


def data_extents(fd: int, start: int, end: int) -> Iterator[Span]:
    """The runs from ``start`` to ``end`` that tmpfs has data for; pages allocated but never written count as holes."""
    position = start
    while position < end:
        try:
            data = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more data, or past the end of the file
                return
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # a block device, which has no holes; a server of FUSE
                yield Span(position, end)
                return
            raise
        if data >= end:
            return
        try:
            position = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        except OSError as error:
            if error.errno == errno.ENXIO:  # truncated between the two calls
                return
            raise
        if data < position:  # otherwise the data was punched out between the two calls
            yield Span(data, position)


def hole_extents(fd: int, start: int, end: int) -> Iterator[Span]:
    """The gaps between the runs of ``data_extents``."""
    return gaps(data_extents(fd, start, end), start, end)


def gaps(runs: Iterable[Span], start: int, end: int) -> Iterator[Span]:
    """The gaps in a range between ``runs``, which are in order and may begin before ``start`` or end after ``end``."""
    position = start
    for low, high in runs:
        if position < low:
            yield Span(position, low)
        position = high
    if position < end:
        yield Span(position, end)


def union(*several: Iterable[Span]) -> Iterator[Span]:
    """The union of several series of runs, each in order; looks ahead by one run."""
    whole: Span | None = None
    for run in heapq.merge(*several):
        if whole is not None and run.start <= whole.end:
            whole = Span(whole.start, max(whole.end, run.end))
            continue
        if whole is not None:
            yield whole
        whole = run
    if whole is not None:
        yield whole
