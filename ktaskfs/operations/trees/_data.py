"""The data of files of a copied tree, on filesystems with write(2)."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import TYPE_CHECKING, Final

from ktaskfs.host import userfaultfd
from ktaskfs.host.buffer import Buffer
from ktaskfs.host.mapping import HoleGuard, Mapping
from ktaskfs.host.presence import data_extents
from ktaskfs.host.syscalls import page_size
from ktaskfs.host.target import FilesystemType
from ktaskfs.memory.tmpfs import has_huge_pages, mapped_windows

if TYPE_CHECKING:
    from ktaskfs.host.target import Target
    from ktaskfs.span import Span

BUFFER: Final = 512 << 10


class FileData:
    """Copies parts of files into files of the filesystem of ``kind``. Threads may copy at the same time.

    Writes to one file exclude each other in the kernel (they hold the lock of its inode), and threads that wait for
    that lock keep their CPUs busy. So only one thread at a time writes to a file. Into tmpfs the others copy through
    mappings meanwhile, which takes more CPU time but not that lock; elsewhere they sleep.
    """

    def __init__(self, kind: Target) -> None:
        self._on_tmpfs = kind.filesystem is FilesystemType.TMPFS
        self.buffer = Buffer(BUFFER)
        """For anything that a thread does between two calls."""
        self._writers: dict[int, threading.Lock] = {}

    def copy(self, source: int, target: int, part: Span) -> None:
        """Copy a part of a file that no other thread writes to. Raises OSError: EBUSY for a source that ends early."""
        for run in data_extents(source, part.start, part.end):
            position = run.start
            while position < run.end:
                os.lseek(target, position, os.SEEK_SET)
                try:
                    count = os.sendfile(target, source, position, run.end - position)
                except OSError as error:
                    if error.errno != errno.EINVAL:  # hugetlbfs and others only have read(2)
                        raise
                    count = self._read(source, position, run.end)
                    _write(target, self.buffer.view[:count], position)
                if not count:
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                position += count

    def copy_shared(self, source: int, target: int, part: Span, index: int) -> None:
        """As ``copy``, where other threads may copy other parts of the same file, which has the number ``index``."""
        writer = self._writers.setdefault(index, threading.Lock())
        if not writer.acquire(blocking=not self._on_tmpfs):
            with contextlib.suppress(OSError):  # ``copy`` reports any error
                self._copy_mapped(source, target, part)
                return
            writer.acquire()
        try:
            self.copy(source, target, part)
        finally:
            writer.release()

    def _copy_mapped(self, source: int, target: int, part: Span) -> None:
        """Raises OSError, also where a filter forbids userfaultfd(2), or the mapping gets no page."""
        whole = part.widened(page_size())
        with Mapping(target, whole.start, whole.size, reserve=False) as mapping, contextlib.ExitStack() as stack:
            guard = None
            if not has_huge_pages(target):
                guard = stack.enter_context(contextlib.closing(HoleGuard()))
                guard.guard(mapping)
            for run in data_extents(source, part.start, part.end):
                for window, _ in mapped_windows(mapping, run):
                    if guard is None:
                        _read_into(source, mapping, window)
                    else:
                        self._insert(source, target, mapping, window, guard.fd)

    def _insert(self, source: int, target: int, mapping: Mapping, window: Span, guard: int) -> None:
        """Insert whole pages that are missing (UFFDIO_COPY); write the rest."""
        position = window.start
        while position < window.end:
            count = self._read(source, position, window.end)
            if not count:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            placed, size = 0, count - count % page_size()
            if size and position % page_size() == 0:
                there = mapping.address + position - mapping.offset
                placed = userfaultfd.copy(guard, there, self.buffer.address, size)
            _write(target, self.buffer.view[placed:count], position + placed)
            position += count

    def _read(self, source: int, position: int, end: int) -> int:
        """Read into the buffer; returns how much, 0 at the end of the file."""
        return os.preadv(source, [self.buffer.view[: end - position]], position)


def _read_into(source: int, mapping: Mapping, window: Span) -> None:
    """Let the kernel read into new huge pages, which it clears. UFFDIO_COPY would insert small pages."""
    if mapping.readv_into(source, window.start, window.start - mapping.offset, window.size) < window.size:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))


def _write(target: int, view: memoryview, position: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(target, view[done:], position + done)


def copy_to_huge_pages(source: int, target: int, piece: Span, page: int) -> None:
    """The kernel reads directly into a mapping of the target, whose pages are reserved before a touch.

    Raises OSError: ENOMEM also for a page that was reserved, but that a control group, or a cpuset, may not have.
    """
    for run in data_extents(source, piece.start, piece.end):
        whole = run.widened(page)
        with Mapping(target, whole.start, whole.size, reserve=True) as mapping:
            position = run.start
            while position < run.end:
                try:
                    count = mapping.readv_into(source, position, position - whole.start, run.end - position)
                except OSError as error:
                    if error.errno == errno.EFAULT and os.fstat(target).st_size >= whole.end:  # not truncated
                        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
                    raise
                if not count:
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                position += count
