"""A mapping of a range of a file that user code of a worker never touches.

A touch of an unavailable page (the file was truncated, the pool is empty) kills the process with SIGBUS. A system call
returns EFAULT instead, so the kernel does all reading and writing: madvise(2) populates, readv(2) and preadv(2) copy
into the mapping. Hands (``host.hands``), which do touch memory, use the same class.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Final, Self

from ktaskfs.host import syscalls, userfaultfd

if TYPE_CHECKING:
    from types import TracebackType

RW_MAX: Final = 0x7FFFF000
"""The most bytes that one read(2) or write(2) transfers (MAX_RW_COUNT)."""


class Mapping:
    """Bytes ``offset`` to ``offset + length`` of ``fd``; both are multiples of the file's page size.

    ``reserve`` reserves every missing huge page of the range at once: mmap(2) fails with ENOMEM if the pool has too
    few, and the reservation stays with the file after the unmap. With ``extend`` hugetlbfs also extends a file that is
    shorter than the range, in the same step (hugetlbfs_file_mmap in fs/hugetlbfs/inode.c); without it the size never
    changes. A ``private`` mapping is read-only, works on a file that is open read-only, and can be guarded by a
    HoleGuard. Use it from one thread at a time, or close it only after the others have finished. Raises OSError.
    """

    def __init__(
        self, fd: int, offset: int, length: int, *, reserve: bool, extend: bool = False, private: bool = False
    ) -> None:
        self.offset = offset
        self.length = length
        flags = syscalls.MAP_PRIVATE if private else syscalls.MAP_SHARED
        flags |= 0 if reserve else syscalls.MAP_NORESERVE
        protection = syscalls.PROT_READ | (syscalls.PROT_WRITE if extend else 0)
        self.address = syscalls.mmap(fd, offset, length, protection, flags)
        try:
            if not extend and not private:
                syscalls.mprotect(self.address, length, syscalls.PROT_READ | syscalls.PROT_WRITE)
            self._view = memoryview((ctypes.c_char * length).from_address(self.address))
        except BaseException:
            syscalls.munmap(self.address, length)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap; the file keeps its pages."""
        if self.address:
            self._view.release()
            address, self.address = self.address, 0
            syscalls.munmap(address, self.length)

    def populate_write(self, start: int, length: int) -> None:
        """Allocate, zero and map what is missing; ``start`` counts from the mapping's beginning.

        Raises OSError: EFAULT for an unavailable page or one past the end of the file, ENOMEM, EHWPOISON. Pages
        populated before the failed one stay.
        """
        self._advise(start, length, syscalls.MADV_POPULATE_WRITE)

    def populate_read(self, start: int, length: int) -> None:
        """Map the pages for reading, like ``populate_write``; without a HoleGuard a hole gets a page, too."""
        self._advise(start, length, syscalls.MADV_POPULATE_READ)

    def read_ahead(self, start: int, length: int) -> None:
        """Start reading pages that are not in the page cache, without waiting. Raises OSError."""
        self._advise(start, length, syscalls.MADV_WILLNEED)

    def prefer_huge_pages(self) -> None:
        """Let each page fault bring a huge page, if it can. Raises OSError."""
        self._advise(0, self.length, syscalls.MADV_HUGEPAGE)

    def read_nothing_ahead(self) -> None:
        """Let each page fault read only the page that it needs. Raises OSError."""
        self._advise(0, self.length, syscalls.MADV_RANDOM)

    def collapse(self, start: int, length: int) -> None:
        """Collapse the range into huge pages; raises OSError."""
        syscalls.madvise(self.address + start, length, syscalls.MADV_COLLAPSE)

    def let_go(self, start: int, length: int) -> None:
        """Unmap the pages; the file keeps them. Raises OSError."""
        self._advise(start, length, syscalls.MADV_DONTNEED)

    def _advise(self, start: int, length: int, advice: int) -> None:
        while True:
            try:
                syscalls.madvise(self.address + start, length, advice)
            except InterruptedError:  # populate restarts at the beginning and skips existing pages
                continue
            return

    def readv_into(self, fd: int, file_offset: int | None, start: int, length: int) -> int:
        """Let the kernel copy ``length`` bytes from ``fd`` to ``start``; returns how many were copied.

        ``file_offset`` None reads on from the descriptor's own position. Fewer than ``length`` bytes mean that
        the source has ended, or that the next byte cannot be copied: a call for that byte raises its OSError
        (EFAULT: no page).
        """
        done = 0
        while done < length:
            piece = self._view[start + done : start + min(length, done + RW_MAX)]
            try:
                count = os.readv(fd, [piece]) if file_offset is None else os.preadv(fd, [piece], file_offset + done)
            except OSError:
                if done:
                    break
                raise
            if count == 0:
                break
            done += count
        return done


class HoleGuard:
    """Makes holes visible: in a mapping it guards, a missing page is EFAULT instead of a new page.

    A userfaultfd without a reader, with the feature SIGBUS: a fault on a missing page fails at once, and the
    kernel's copy turns that into EFAULT. Raises OSError if the kernel or a seccomp filter does not allow one.
    """

    def __init__(self) -> None:
        self.fd = userfaultfd.create(
            userfaultfd.FEATURE_SIGBUS | userfaultfd.FEATURE_MISSING_HUGETLBFS | userfaultfd.FEATURE_MISSING_SHMEM
        )

    def guard(self, mapping: Mapping) -> None:
        """Until it is closed, only UFFDIO_COPY allocates pages through ``mapping``."""
        userfaultfd.register(self.fd, mapping.address, mapping.length)

    def close(self) -> None:
        """Close the descriptor; its mappings become ordinary ones."""
        os.close(self.fd)
