"""SysV segments of huge pages in the IPC namespace of this process: their pages in use."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import NotPermitted
from ktaskfs.host import sysv
from ktaskfs.host.huge_mappings import FileId, Known, huge_areas_of
from ktaskfs.host.syscalls import page_size as base_page_size
from ktaskfs.host.syscalls import release

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ktaskfs.host.kernel import Kernel

LARGE_RESIDENT: Final = (6, 7)
"""The first Linux that multiplies the pages of a segment twice (shm_add_rss_swap, since a08c7193e4f1)."""


def resident_pages(kernel: Kernel, page_sizes: Mapping[int, int]) -> dict[FileId, int]:
    """Pages in use by each segment of huge pages, for each filesystem of ``page_sizes``, by device."""
    with contextlib.suppress(OSError, NotPermitted):
        namespace = os.readlink("self/ns/ipc", dir_fd=kernel.proc)
        return {
            (device, each.number, namespace): _pages(each, page_size)
            for each in sysv.segments(kernel)
            for device, page_size in page_sizes.items()
        }
    return {}


def _pages(segment: sysv.Segment, page_size: int) -> int:
    pages = segment.resident // page_size
    return pages // (page_size // base_page_size()) if release() >= LARGE_RESIDENT else pages


def detached_segments(kernel: Kernel, page_sizes: Mapping[int, int]) -> Iterator[tuple[int, sysv.Segment, int]]:
    """Page size, segment and pages in use of each segment that nobody has attached and this process may read.

    The kernel reports the page size only of attached segments, so a large segment is attached for a moment.
    """
    with contextlib.suppress(OSError, NotPermitted):
        if not page_sizes or not sysv.stay_when_detached(kernel):
            return
        for segment in sysv.segments(kernel):
            if segment.attached or segment.mode & sysv.SHM_DEST or segment.size < min(page_sizes.values()):
                continue
            with contextlib.suppress(OSError), sysv.attached(segment.number) as address:
                for area in huge_areas_of(kernel.proc, "self", Known(dict(page_sizes))).areas:
                    if area.start == address:
                        page_size = page_sizes[area.file[0]]
                        yield page_size, segment, _pages(segment, page_size)
