"""System calls that the standard library lacks, or makes with the interpreter's lock held.

Each wrapper drops the lock for the call and raises OSError with the kernel's errno. The import looks up all symbols,
because a worker later changes its user and root and cannot load libraries. Linux on 64-bit machines with the generic
system call table, or x86-64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import struct
from typing import Any, Final

from ktaskfs.libc import bind, checked

PROT_READ: Final = 1
PROT_WRITE: Final = 2
MAP_SHARED: Final = 1
MAP_PRIVATE: Final = 2
MAP_ANONYMOUS: Final = 0x20
MAP_NORESERVE: Final = 0x4000

MADV_RANDOM: Final = 1
MADV_WILLNEED: Final = 3
MADV_DONTNEED: Final = 4
MADV_HUGEPAGE: Final = 14
MADV_POPULATE_READ: Final = 22
MADV_POPULATE_WRITE: Final = 23
MADV_COLLAPSE: Final = 25

FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2

CAP_FOWNER: Final = 3
CAP_SYS_NICE: Final = 23

CLONE_PARENT: Final = 0x00008000
CLONE_NEWUSER: Final = 0x10000000

PR_SET_PDEATHSIG: Final = 1
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_SET_NAME: Final = 15
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

HUGETLBFS_MAGIC: Final = 0x958458F6
RAMFS_MAGIC: Final = 0x858458F6
PROC_SUPER_MAGIC: Final = 0x9FA0
SYSFS_MAGIC: Final = 0x62656572
TMPFS_MAGIC: Final = 0x01021994
FUSE_SUPER_MAGIC: Final = 0x65735546

_LINUX_CAPABILITY_VERSION_3: Final = 0x20080522

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08

SYNC_FILE_RANGE_WAIT_BEFORE: Final = 1
SYNC_FILE_RANGE_WRITE: Final = 2
SYNC_FILE_RANGE_WAIT_AFTER: Final = 4

_OPENAT2: Final = 437
"""The number is the same on every machine, like those of all newer system calls."""
_GENERIC_NUMBERS: Final = {
    "userfaultfd": 282,
    "move_pages": 239,
    "get_mempolicy": 236,
    "process_madvise": 440,
    "clone": 220,
}
_X86_64_NUMBERS: Final = {
    "userfaultfd": 323,
    "move_pages": 279,
    "get_mempolicy": 239,
    "process_madvise": 440,
    "clone": 56,
}
_NUMBERS: Final = _X86_64_NUMBERS if os.uname().machine == "x86_64" else _GENERIC_NUMBERS
"""The C library has no wrappers for these (libnuma has, for some); asm-generic/unistd.h."""

_LIBC_LOCKED: Final = ctypes.PyDLL(None, use_errno=True)
"""Like LIBC, for calls that keep the interpreter's lock."""


_long, _ulong, _int, _ptr = ctypes.c_long, ctypes.c_ulong, ctypes.c_int, ctypes.c_void_p
_mmap = bind("mmap", _ptr, _ptr, ctypes.c_size_t, _int, _int, _int, ctypes.c_int64)
_munmap = bind("munmap", _int, _ptr, ctypes.c_size_t)
_mprotect = bind("mprotect", _int, _ptr, ctypes.c_size_t, _int)
_madvise = bind("madvise", _int, _ptr, ctypes.c_size_t, _int)
_quick_madvise = bind("madvise", _int, _ptr, ctypes.c_size_t, _int, library=_LIBC_LOCKED)
_fork = bind("fork", _int, library=_LIBC_LOCKED)
_memcmp = bind("memcmp", _int, _ptr, _ptr, ctypes.c_size_t)
_fallocate = bind("fallocate", _int, _int, _int, ctypes.c_int64, ctypes.c_int64)
_sync_file_range = bind("sync_file_range", _int, _int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_getaffinity = bind("sched_getaffinity", _int, _int, ctypes.c_size_t, _ptr)
_setaffinity = bind("sched_setaffinity", _int, _int, ctypes.c_size_t, ctypes.c_char_p)
_prctl = bind("prctl", _int, _int, _ulong, _ulong, _ulong, _ulong)
_capget = bind("capget", _int, _ptr, _ptr)
_capset = bind("capset", _int, _ptr, _ptr)
_statx = bind("statx", _int, _int, ctypes.c_char_p, _int, ctypes.c_uint, _ptr)
_setns = bind("setns", _int, _int, _int)
_fstatfs = bind("fstatfs", _int, _int, _ptr)
_syscall = bind("syscall", _long, _long, _ulong, _ulong, _ulong, _ulong, _ulong, _ulong)
_openat2 = bind("syscall", _long, _long, _long, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
_clone = bind("syscall", _long, _long, _ulong, _ulong, _ulong, _ulong, _ulong, library=_LIBC_LOCKED)
_HOW: Final = struct.Struct("=QQQ")
"""struct open_how: flags, mode, resolve."""
_MASK_BYTES: Final = 1024
"""A bit for each of as many CPUs as any kernel can have (CONFIG_NR_CPUS)."""
_PAGE: Final = os.sysconf("SC_PAGESIZE")


def _completed(function: Any, *arguments: Any) -> int:
    """The result of a call that is repeated after interrupts by signals, as in the standard library (PEP 475)."""
    while True:
        result: int = function(*arguments)
        if result != -1 or ctypes.get_errno() != errno.EINTR:
            return checked(result)


def release() -> tuple[int, ...]:
    """The two numbers of the running Linux, as (6, 1)."""
    return tuple(map(int, re.findall("[0-9]+", os.uname().release)[:2]))


def page_size() -> int:
    """Bytes in a page of ordinary memory, the unit of mmap(2) and of tmpfs."""
    return _PAGE


def mmap(fd: int, offset: int, length: int, protection: int, flags: int) -> int:
    """Map a file at any address; returns the address. mmap(2)."""
    address = _mmap(None, length, protection, flags, fd, offset)
    if address is None or address == ctypes.c_void_p(-1).value:
        checked(-1)
    return int(address)


def munmap(address: int, length: int) -> None:
    """Unmap. munmap(2)."""
    checked(_munmap(address, length))


def mprotect(address: int, length: int, protection: int) -> None:
    """Change what a mapping allows. mprotect(2)."""
    checked(_mprotect(address, length, protection))


def madvise(address: int, length: int, advice: int) -> None:
    """One madvise(2); MADV_POPULATE_READ and _WRITE fail with EFAULT where a touch would raise SIGBUS."""
    checked(_madvise(address, length, advice))


def try_madvise(address: int, length: int, advice: int) -> int:
    """One madvise(2) that keeps the interpreter's lock; returns 0 or an errno.

    For calls of a microsecond, of which there are millions: dropping the lock and raising take ten times as long.
    """
    return 0 if _quick_madvise(address, length, advice) == 0 else ctypes.get_errno()


def fork() -> int:
    """fork(2) of a process with one thread; returns 0 in the child. Raises OSError.

    os.fork() repairs what other threads may have left half-done, and writes to 150 pages of the child for that.
    """
    return checked(_fork())


def same_bytes(first: int, second: int, length: int) -> bool:
    """Whether two pieces of memory are equal; only hands may pass a mapping of a file. memcmp(3)."""
    return bool(_memcmp(first, second, length) == 0)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """One fallocate(2), never the emulation of posix_fallocate(3)."""
    _completed(_fallocate, fd, mode, offset, length)


def punch_hole(fd: int, start: int, end: int) -> None:
    """Free the pages from ``start`` to ``end``; the file keeps its size. fallocate(2)."""
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, end - start)


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """Open ``path`` below ``directory``, with limits on its resolution. openat2(2), since Linux 5.6."""
    how = _HOW.pack(flags, 0, resolve)
    return _completed(_openat2, _OPENAT2, directory, os.fsencode(path), how, _HOW.size)


def write_back(fd: int, offset: int, length: int) -> None:
    """Write the dirty pages of a range and wait for them, but not the metadata. sync_file_range(2).

    A ``length`` of 0 means to the end of the file.
    """
    flags = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER
    checked(_sync_file_range(fd, offset, length, flags))


def filesystem_magic(fd: int) -> int:
    """The type of the filesystem that holds the file (``f_type`` of fstatfs(2)), which statvfs leaves out.

    0 if it does not tell: a server of FUSE need not answer statfs.
    """
    buffer = ctypes.create_string_buffer(256)  # struct statfs has 120 bytes on 64-bit machines
    try:
        _completed(_fstatfs, fd, buffer)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return 0
    magic: int = struct.unpack_from("=q", buffer)[0]
    return magic & 0xFFFFFFFF


def is_served(fd: int) -> bool:
    """Whether the file is on a FUSE. Raises OSError."""
    return filesystem_magic(fd) in (FUSE_SUPER_MAGIC, 0)


def statx(directory: int, path: str, flags: int, mask: int, status: ctypes.Array[ctypes.c_char]) -> None:
    """Fill in a struct statx. statx(2); ``ktaskfs.host.statx`` reads it."""
    checked(_statx(directory, os.fsencode(path), flags, mask, status))


def prctl(option: int, second: int = 0, third: int = 0) -> int:
    """One prctl(2); unused arguments are zero, as most options demand."""
    return checked(_prctl(option, second, third, 0, 0))


def cpu_mask() -> bytes:
    """The CPUs of the calling thread as the kernel's mask, which is faster than a set of numbers."""
    mask = (ctypes.c_ubyte * _MASK_BYTES)()
    checked(_getaffinity(0, _MASK_BYTES, mask))
    return bytes(mask)


def set_cpu_mask(tid: int, mask: bytes) -> None:
    """Restrict another thread or process to the CPUs of ``cpu_mask``. sched_setaffinity(2)."""
    checked(_setaffinity(tid, len(mask), mask))


def setns(fd: int, kind: int) -> None:
    """Enter the namespace of a descriptor; ``kind`` is its CLONE_NEW flag. setns(2)."""
    checked(_setns(fd, kind))


def set_thread_name(name: str) -> None:
    """Name the calling thread, as ps -L and top -H show it; the kernel keeps 15 bytes."""
    text = ctypes.create_string_buffer(name.encode(errors="replace")[:15])
    prctl(PR_SET_NAME, ctypes.addressof(text))


def clone_sibling() -> int:
    """Like fork(2), but the new process is a child of the caller's parent; only for a single-threaded process.

    It bypasses the C library and the interpreter, which cache no process number. clone(2), CLONE_PARENT.
    """
    return checked(_clone(_NUMBERS["clone"], CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0))


def capget() -> tuple[int, int, int]:
    """The calling thread's effective, permitted and inheritable capabilities as bit masks. capget(2)."""
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    checked(_capget(header, data))
    return data[0] | data[3] << 32, data[1] | data[4] << 32, data[2] | data[5] << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the calling thread's capabilities; other threads keep theirs. capset(2)."""
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    masks = (effective, permitted, inheritable)
    data = (ctypes.c_uint32 * 6)(*(m & 0xFFFFFFFF for m in masks), *(m >> 32 for m in masks))
    checked(_capset(header, data))


def numbered(name: str, *arguments: int) -> int:
    """The result of a system call without a wrapper in the C library; ``name`` is one of ``_NUMBERS``."""
    return checked(_syscall(_NUMBERS[name], *arguments, *[0] * (6 - len(arguments))))
