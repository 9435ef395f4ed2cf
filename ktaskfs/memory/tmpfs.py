"""Using the pages of a file of tmpfs window by window, as they count as the worker's own memory while mapped."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from ktaskfs.host.syscalls import page_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.host.mapping import Mapping
    from ktaskfs.host.target import Target
    from ktaskfs.span import Span

WINDOW: Final = 4 << 20
"""Bytes that a thread has mapped at a time. Taking pages out of a mapping interrupts the other processors: two threads
that populate huge pages lose a tenth of their speed to that, and would lose less with larger windows."""


def has_huge_pages(target: Target) -> bool:
    """Whether a file of tmpfs is on a mount that gives it huge pages (shmem_getattr in mm/shmem.c)."""
    return os.fstat(target.fd).st_blksize > page_size()


def mapped_windows(mapping: Mapping, extent: Span) -> Iterator[tuple[Span, Span]]:
    """The windows of a range of tmpfs, each with the whole pages around it, which are released before the next.

    Raises OSError.
    """
    for window in extent.windows(WINDOW):
        pages = window.widened(page_size())
        yield window, pages
        mapping.let_go(pages.start - mapping.offset, pages.size)
