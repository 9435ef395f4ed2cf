"""The part of a file in the page cache."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import NotSupported
from ktaskfs.host import syscalls
from ktaskfs.host.mapping import Mapping
from ktaskfs.host.presence import data_extents
from ktaskfs.host.target import size_of
from ktaskfs.host.transparent import huge_page_size
from ktaskfs.libc import bind, checked
from ktaskfs.span import Span

if TYPE_CHECKING:
    from ktaskfs.host.kernel import Kernel

OVERLAYFS_MAGIC: Final = 0x794C7630
_MEMORY_MAGICS: Final = frozenset({syscalls.TMPFS_MAGIC, syscalls.HUGETLBFS_MAGIC, syscalls.RAMFS_MAGIC})
"""Filesystems whose files are only in memory."""
WINDOW: Final = 64 << 20
"""Bytes of a file for one mincore(2)."""
READ_WINDOW: Final = 8 << 20
"""Bytes that are mapped at a time: mapped pages count as the worker's memory."""
HUGE_READS: Final = (5, 18)
"""The first Linux that reads a huge page for a fault in a mapping with MADV_HUGEPAGE."""
LARGEST_ORDER: Final = 11
"""The order of the largest page that the page cache can have (MAX_XAS_ORDER). With small pages of 64 KiB it is smaller
than a huge page of 512 MiB."""
_NO_LOOK: Final = frozenset({errno.ENODEV, errno.ENOSYS, errno.EPERM, errno.ENOMEM})
"""Its filesystem knows no mappings; a filter; the room for addresses is used up (RLIMIT_AS)."""
_CACHESTAT: Final = 451
"""The number of cachestat(2), the same on every machine; since Linux 6.5."""
_Answer = ctypes.c_uint64 * 5
"""struct cachestat, which begins with the numbers of cached and of dirty pages."""
_RANGE: Final = struct.Struct("=QQ")

_ptr = ctypes.c_void_p
_syscall = bind("syscall", ctypes.c_long, ctypes.c_long, ctypes.c_uint, ctypes.c_char_p, _ptr, ctypes.c_uint)
_mincore = bind("mincore", ctypes.c_int, _ptr, ctypes.c_size_t, _ptr)


def is_of_memory(fd: int) -> bool:
    """Whether a file is only in memory. A block device is not, even if its name is on a tmpfs. Raises OSError."""
    return not stat.S_ISBLK(os.fstat(fd).st_mode) and syscalls.filesystem_magic(fd) in _MEMORY_MAGICS


class Cached(NamedTuple):
    """Bytes of whole pages of a range in the cache, and of dirty ones, if known."""

    resident: int
    dirty: int | None


def cached_bytes(fd: int, start: int, end: int, *, overlay: bool) -> Cached | None:
    """The cached part of a range of a file open for reading, maybe on an ``overlay``. Raises OSError.

    None if unknown: the kernel answers only for files that the user owns or may write. EOPNOTSUPP for hugetlbfs.

    cachestat(2) covers only a file's own pages, including those being read. The pages of an overlay's file belong to
    the file below it, which only a mapping reaches: mincore(2), which reports everything as cached for a file that it
    may not examine. mincore(2) also serves older kernels, and filters that forbid cachestat(2).
    """
    if start >= end:
        return Cached(0, 0)
    if not overlay:
        try:
            return _cachestat(fd, start, end)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):  # EPERM: the caller may not know, or a filter
                raise
    if syscalls.filesystem_magic(fd) == syscalls.HUGETLBFS_MAGIC:  # as cachestat(2): a mapping would reserve huge pages
        raise _not_supported()
    if not _is_own(fd):
        return None
    try:
        runs = data_extents(fd, start, min(end, size_of(fd)))
        return Cached(sum(_resident(fd, run.start, run.end) for run in runs), None)
    except OSError as error:
        if error.errno in _NO_LOOK:
            return None
        raise


def huge_read(kernel: Kernel) -> int:
    """Bytes of the huge pages that ``read_in_huge_pages`` reads; 0 on a kernel where it would read single small pages,
    one for each fault."""
    try:
        size = huge_page_size(kernel)
    except NotSupported:
        return 0
    return size if syscalls.release() >= HUGE_READS and size <= syscalls.page_size() << LARGEST_ORDER else 0


def read_in_huge_pages(fd: int, extent: Span) -> None:
    """Read a part of a file into the page cache, from a multiple of the size of a huge page on, and what the last huge
    page has after its end.

    The kernel uses huge pages if the filesystem can and memory has them (do_sync_mmap_readahead in mm/filemap.c), small
    pages otherwise. Raises OSError: EFAULT if a page cannot be read, or the file is shorter now;
    EOPNOTSUPP for a file of memory, whose holes a fault would fill, and for a block device, whose cache has no huge
    pages.
    """
    if stat.S_ISBLK(os.fstat(fd).st_mode) or is_of_memory(fd):
        raise _not_supported()
    length = extent.widened(syscalls.page_size()).size
    for window in Span(extent.start, extent.start + length).windows(READ_WINDOW):
        with Mapping(fd, window.start, window.size, reserve=False, private=True) as mapping:
            mapping.prefer_huge_pages()
            mapping.read_nothing_ahead()
            mapping.populate_read(0, window.size)


def _not_supported() -> OSError:
    return OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def _is_own(fd: int) -> bool:
    return os.fstat(fd).st_uid == os.geteuid() or bool(syscalls.capget()[0] >> syscalls.CAP_FOWNER & 1)


def _cachestat(fd: int, start: int, end: int) -> Cached:
    """cachestat(2): ``nr_cache`` and ``nr_dirty`` of struct cachestat."""
    answer = _Answer()
    checked(_syscall(_CACHESTAT, fd, _RANGE.pack(start, end - start), answer, 0))
    resident, dirty, *_ = answer
    return Cached(resident * syscalls.page_size(), dirty * syscalls.page_size())


def _resident(fd: int, start: int, end: int) -> int:
    page, found = syscalls.page_size(), 0
    first = start - start % page
    for position in range(first, end, WINDOW):
        length = min(WINDOW, end - position)
        pages = -(-length // page)
        seen = ctypes.create_string_buffer(pages)
        address = syscalls.mmap(fd, position, length, syscalls.PROT_READ, syscalls.MAP_SHARED)
        try:
            checked(_mincore(address, length, seen))
        finally:
            syscalls.munmap(address, length)
        found += pages - seen.raw.count(0)
    return found * page
