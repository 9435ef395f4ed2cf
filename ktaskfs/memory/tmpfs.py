"""How the pages of a file of tmpfs are used: window by window, for they count as the worker's while they are mapped."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from ktaskfs.host.syscalls import page_size
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.host.mapping import Mapping
    from ktaskfs.host.target import Target

WINDOW: Final = 4 << 20
"""Bytes that a thread has mapped at a time. To take pages out of a mapping interrupts the other processors: populating
huge pages, two threads lose a tenth of their speed to that, and would lose less with larger windows."""


def has_huge_pages(target: Target) -> bool:
    """Whether a file of tmpfs is on a mount that gives it huge pages (shmem_getattr in mm/shmem.c)."""
    return os.fstat(target.fd).st_blksize > page_size()


def mapped_windows(mapping: Mapping, start: int, end: int) -> Iterator[tuple[Span, Span]]:
    """The windows of a range of tmpfs, each with the whole pages around it; those are let go of before the next.

    Raises OSError.
    """
    for window in Span(start, end).windows(WINDOW):
        pages = window.widened(page_size())
        yield window, pages
        mapping.let_go(pages.start - mapping.offset, pages.size)
