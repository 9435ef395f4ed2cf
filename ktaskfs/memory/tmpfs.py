"""Use the pages of a tmpfs file window by window, because mapped pages count as the worker's own memory."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Final, TypeVar

from ktaskfs.host.syscalls import page_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ktaskfs.host.mapping import Mapping
    from ktaskfs.span import Span

WINDOW: Final = 8 << 20
"""Bytes that a thread maps at a time. Unmapping pages interrupts the other CPUs: with 4 MiB, two threads that populate
huge pages lost a tenth of their speed. With 16 MiB, the tests found too much memory of the worker."""
PATIENCE: Final = 2.0
"""Seconds of retries on a full tmpfs. On two busy CPUs it took up to 0.07 s."""
_PAUSE: Final = 0.001
_PAUSE_MAX: Final = 0.05

T = TypeVar("T")


def with_room(write: Callable[[], T]) -> T:
    """The result of ``write``, repeated for a while on ENOSPC from tmpfs. Raises its last error.

    If small files have huge pages (``huge=always``), a full tmpfs splits those that extend past the ends of files. The
    splitting process takes up to 128 files off their list (shmem_unused_huge_shrink in mm/shmem.c), and others then get
    ENOSPC, although there is room a moment later. Nothing reports that moment.
    """
    pause, deadline = _PAUSE, time.monotonic() + PATIENCE
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno != errno.ENOSPC or time.monotonic() >= deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _PAUSE_MAX)


def has_huge_pages(fd: int) -> bool:
    """Whether a tmpfs file is on a mount that gives it huge pages (shmem_getattr in mm/shmem.c)."""
    return os.fstat(fd).st_blksize > page_size()


def mapped_windows(mapping: Mapping, extent: Span) -> Iterator[tuple[Span, Span]]:
    """The windows of a range of tmpfs, each with the whole pages around it, which are released before the next.

    Raises OSError.
    """
    for window in extent.windows(WINDOW):
        pages = window.widened(page_size())
        yield window, pages
        mapping.let_go(pages.start - mapping.offset, pages.size)
