"""System calls that the standard library lacks, or makes while it holds the interpreter's lock.

Each wrapper drops the lock for the call and raises OSError with the kernel's errno. All symbols are looked up
when this module is imported: a worker changes its user and root afterwards and can load nothing more.
Linux on 64-bit machines with the generic system call table, or x86-64.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

PROT_READ: Final = 1
PROT_WRITE: Final = 2
MAP_SHARED: Final = 1
MAP_PRIVATE: Final = 2
MAP_NORESERVE: Final = 0x4000

MADV_WILLNEED: Final = 3
MADV_DONTNEED: Final = 4
MADV_POPULATE_READ: Final = 22
MADV_POPULATE_WRITE: Final = 23

FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2

MPOL_MF_MOVE: Final = 1 << 1
MPOL_MF_MOVE_ALL: Final = 1 << 2

CAP_FOWNER: Final = 3
CAP_SYS_NICE: Final = 23

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

UFFD_USER_MODE_ONLY: Final = 1
UFFD_FEATURE_MISSING_HUGETLBFS: Final = 1 << 4
UFFD_FEATURE_MISSING_SHMEM: Final = 1 << 5
UFFD_FEATURE_SIGBUS: Final = 1 << 7

HUGETLBFS_MAGIC: Final = 0x958458F6
RAMFS_MAGIC: Final = 0x858458F6
PROC_SUPER_MAGIC: Final = 0x9FA0
SYSFS_MAGIC: Final = 0x62656572
TMPFS_MAGIC: Final = 0x01021994

_UFFD_API_VERSION: Final = 0xAA
_UFFDIO_API: Final = 0xC018AA3F
_UFFDIO_REGISTER: Final = 0xC020AA00
_UFFDIO_COPY: Final = 0xC028AA03
_UFFDIO_COPY_MODE_DONTWAKE: Final = 1
_UFFDIO_REGISTER_MODE_MISSING: Final = 1
_LINUX_CAPABILITY_VERSION_3: Final = 0x20080522

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08

SYNC_FILE_RANGE_WAIT_BEFORE: Final = 1
SYNC_FILE_RANGE_WRITE: Final = 2
SYNC_FILE_RANGE_WAIT_AFTER: Final = 4

STATX_ATTR_IMMUTABLE: Final = 0x10
STATX_ATTR_APPEND: Final = 0x20
STATX_ATTR_MOUNT_ROOT: Final = 0x2000

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_STATX_BTIME: Final = 0x800
_STATX_SIZE: Final = 256
_STATX_ATTRIBUTES_AT: Final = 8
"""Where struct statx has the attributes, as u64 (linux/stat.h)."""
_STATX_ATTRIBUTES_MASK_AT: Final = 56
"""Where it says which attributes are supported, as u64."""
_STATX_BTIME_AT: Final = 80
"""And the time of birth: seconds as s64, nanoseconds as u32."""
_OPENAT2: Final = 437
"""The same on every machine, as all newer system calls."""
_GENERIC_NUMBERS: Final = {"userfaultfd": 282, "move_pages": 239}
_X86_64_NUMBERS: Final = {"userfaultfd": 323, "move_pages": 279}
_NUMBERS: Final = _X86_64_NUMBERS if os.uname().machine == "x86_64" else _GENERIC_NUMBERS
"""The C library has no wrappers for these (libnuma has, for some); asm-generic/unistd.h."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC_LOCKED: Final = ctypes.PyDLL(None, use_errno=True)
"""The same, for calls that keep the interpreter's lock."""


def _bind(name: str, result: Any, *arguments: Any, library: ctypes.CDLL = _LIBC) -> Any:
    function = getattr(library, name)
    function.restype = result
    function.argtypes = arguments
    return function


_long, _ulong, _int, _ptr = ctypes.c_long, ctypes.c_ulong, ctypes.c_int, ctypes.c_void_p
_mmap = _bind("mmap", _ptr, _ptr, ctypes.c_size_t, _int, _int, _int, ctypes.c_int64)
_munmap = _bind("munmap", _int, _ptr, ctypes.c_size_t)
_mprotect = _bind("mprotect", _int, _ptr, ctypes.c_size_t, _int)
_madvise = _bind("madvise", _int, _ptr, ctypes.c_size_t, _int)
_quick_madvise = _bind("madvise", _int, _ptr, ctypes.c_size_t, _int, library=_LIBC_LOCKED)
_memcmp = _bind("memcmp", _int, _ptr, _ptr, ctypes.c_size_t)
_fallocate = _bind("fallocate", _int, _int, _int, ctypes.c_int64, ctypes.c_int64)
_sync_file_range = _bind("sync_file_range", _int, _int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_prctl = _bind("prctl", _int, _int, _ulong, _ulong, _ulong, _ulong)
_capget = _bind("capget", _int, _ptr, _ptr)
_capset = _bind("capset", _int, _ptr, _ptr)
_statx = _bind("statx", _int, _int, ctypes.c_char_p, _int, ctypes.c_uint, _ptr)
_fstatfs = _bind("fstatfs", _int, _int, _ptr)
_syscall = _bind("syscall", _long, _long, _ulong, _ulong, _ulong, _ulong, _ulong, _ulong)
_PAGE: Final = os.sysconf("SC_PAGESIZE")


def _check(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _completed(function: Any, *arguments: Any) -> int:
    """What a call returns, made again each time a signal ended it, as the standard library does (PEP 475)."""
    while True:
        result: int = function(*arguments)
        if result != -1 or ctypes.get_errno() != errno.EINTR:
            return _check(result)


def page_size() -> int:
    """Bytes in a page of ordinary memory, the unit of mmap(2) and of tmpfs."""
    return _PAGE


def mmap(fd: int, offset: int, length: int, protection: int, flags: int) -> int:
    """Map a file where the kernel likes; returns the address. mmap(2)."""
    address = _mmap(None, length, protection, flags, fd, offset)
    if address is None or address == ctypes.c_void_p(-1).value:
        _check(-1)
    return int(address)


def munmap(address: int, length: int) -> None:
    """Unmap. munmap(2)."""
    _check(_munmap(address, length))


def mprotect(address: int, length: int, protection: int) -> None:
    """Change what a mapping allows. mprotect(2)."""
    _check(_mprotect(address, length, protection))


def madvise(address: int, length: int, advice: int) -> None:
    """One madvise(2); MADV_POPULATE_READ and _WRITE fail with EFAULT where a touch would raise SIGBUS."""
    _check(_madvise(address, length, advice))


def try_madvise(address: int, length: int, advice: int) -> int:
    """One madvise(2) that keeps the interpreter's lock; returns 0 or an errno.

    For calls of a microsecond, of which there are millions: dropping the lock and raising take ten times as long.
    """
    return 0 if _quick_madvise(address, length, advice) == 0 else ctypes.get_errno()


def same_bytes(first: int, second: int, length: int) -> bool:
    """Whether two pieces of the process's own memory are alike; never for a mapping of a file. memcmp(3)."""
    return bool(_memcmp(first, second, length) == 0)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """One fallocate(2), never the emulation of posix_fallocate(3)."""
    _completed(_fallocate, fd, mode, offset, length)


def punch_hole(fd: int, start: int, end: int) -> None:
    """Free the pages from ``start`` to ``end``; the file keeps its size. fallocate(2)."""
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, end - start)


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """Open ``path`` from ``directory`` on, with limits to what it may lead through. openat2(2), since Linux 5.6."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    how = (ctypes.c_uint64 * 3)(flags, 0, resolve)
    size = ctypes.sizeof(how)
    return _completed(_syscall, _OPENAT2, directory, ctypes.addressof(name), ctypes.addressof(how), size, 0, 0)


def write_back(fd: int) -> None:
    """Write a file's dirty pages and wait for them, but not its metadata. sync_file_range(2)."""
    flags = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER
    _check(_sync_file_range(fd, 0, 0, flags))


def filesystem_magic(fd: int) -> int:
    """The type of the filesystem that holds the file (``f_type`` of fstatfs(2)), which statvfs leaves out."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs has 120 bytes on 64-bit machines
    _completed(_fstatfs, fd, buffer)
    magic: int = struct.unpack_from("=q", buffer)[0]
    return magic & 0xFFFFFFFF


def birth_time(path: str) -> int:
    """When the file was made, in nanoseconds (statx(2), STATX_BTIME); raises OSError.

    0 where its filesystem does not keep that (hugetlbfs), or a filter forbids to ask.
    """
    status = _read_statx(_AT_FDCWD, path, 0)
    known, *_ = struct.unpack_from("=I", status)
    seconds, nanoseconds = struct.unpack_from("=qI", status, _STATX_BTIME_AT)
    return seconds * 10**9 + nanoseconds if known & _STATX_BTIME else 0


def attributes(fd: int) -> int:
    """The STATX_ATTR_ bits of an open file or directory (statx(2)); raises OSError. 0 where a filter forbids to ask."""
    bits: int = struct.unpack_from("=Q", _read_statx(fd, "", _AT_EMPTY_PATH), _STATX_ATTRIBUTES_AT)[0]
    return bits


def is_mount_root(fd: int) -> bool:
    """Whether something is mounted at the place where ``fd`` was opened. statx(2), STATX_ATTR_MOUNT_ROOT.

    Raises OSError: ENOSYS where a filter forbids to ask, or before Linux 5.8.
    """
    status = _read_statx(fd, "", _AT_EMPTY_PATH)
    known: int = struct.unpack_from("=Q", status, _STATX_ATTRIBUTES_MASK_AT)[0]
    if not known & STATX_ATTR_MOUNT_ROOT:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    bits: int = struct.unpack_from("=Q", status, _STATX_ATTRIBUTES_AT)[0]
    return bool(bits & STATX_ATTR_MOUNT_ROOT)


def _read_statx(directory: int, path: str, flags: int) -> ctypes.Array[ctypes.c_char]:
    """A struct statx, all zeros where a filter forbids the call: older container runtimes do not know it."""
    status = ctypes.create_string_buffer(_STATX_SIZE)
    try:
        _check(_statx(directory, os.fsencode(path), flags, _STATX_BTIME, status))
    except PermissionError as error:
        if error.errno != errno.EPERM:  # no file gives that
            raise
    return status


def prctl(option: int, second: int = 0, third: int = 0) -> int:
    """One prctl(2); unused arguments are zero, as most options demand."""
    return _check(_prctl(option, second, third, 0, 0))


def set_thread_name(name: str) -> None:
    """Name the calling thread, as ps -L and top -H show it; the kernel keeps 15 bytes."""
    text = ctypes.create_string_buffer(name.encode(errors="replace")[:15])
    prctl(PR_SET_NAME, ctypes.addressof(text))


def capget() -> tuple[int, int, int]:
    """The calling thread's effective, permitted and inheritable capabilities as bit masks. capget(2)."""
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    _check(_capget(header, data))
    return data[0] | data[3] << 32, data[1] | data[4] << 32, data[2] | data[5] << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the calling thread's capabilities; other threads keep theirs. capset(2)."""
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    masks = (effective, permitted, inheritable)
    data = (ctypes.c_uint32 * 6)(*(m & 0xFFFFFFFF for m in masks), *(m >> 32 for m in masks))
    _check(_capset(header, data))


def userfaultfd(features: int) -> int:
    """A userfaultfd for faults of user mode only, which every user may have; returns the descriptor.

    Raises EPERM where a seccomp filter forbids it, ENOSYS or EINVAL where the kernel lacks it or a feature.
    userfaultfd(2), ioctl_userfaultfd(2).
    """
    fd = _check(_syscall(_NUMBERS["userfaultfd"], os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY, 0, 0, 0, 0, 0))
    try:
        fcntl.ioctl(fd, _UFFDIO_API, bytearray(struct.pack("=QQQ", _UFFD_API_VERSION, features, 0)))
    except OSError:
        os.close(fd)
        raise
    return fd


def userfaultfd_register(fd: int, address: int, length: int) -> None:
    """Let ``fd`` stand in the way of faults on missing pages of the range, until it is unmapped."""
    request = struct.pack("=QQQQ", address, length, _UFFDIO_REGISTER_MODE_MISSING, 0)
    fcntl.ioctl(fd, _UFFDIO_REGISTER, bytearray(request))


def userfaultfd_copy(fd: int, address: int, source: int, length: int) -> int:
    """Fill missing pages of a registered range, which are not zeroed first, with a copy of the memory at ``source``.

    Returns how many bytes went in, whole pages, before one that could not: it was there already, lies past the end of
    the file, no memory was to be had, or ``source`` has no page there. ioctl_userfaultfd(2), UFFDIO_COPY.
    """
    request = bytearray(struct.pack("=QQQQq", address, source, length, _UFFDIO_COPY_MODE_DONTWAKE, 0))
    try:
        fcntl.ioctl(fd, _UFFDIO_COPY, request)
    except OSError:
        copied: int = struct.unpack_from("=q", request, 32)[0]  # or the negative errno
        return max(copied, 0)
    return length


def page_nodes(addresses: Sequence[int]) -> list[int]:
    """The NUMA node of the page at each address; a negative errno where no page is mapped. move_pages(2)."""
    count = len(addresses)
    pages = (ctypes.c_uint64 * count)(*addresses)
    status = (_int * count)()
    _move_pages(count, ctypes.addressof(pages), 0, ctypes.addressof(status), 0)
    return list(status)


def move_pages(addresses: Sequence[int], nodes: Sequence[int], *, shared: bool = False) -> list[int]:
    """Move the page at each address to its node; returns where each is now, or a negative errno. move_pages(2).

    -EAGAIN stands for a page of which the kernel says nothing: it gave up, as it does when a lock is busy.
    ``shared``: even those that other processes have mapped too, which takes CAP_SYS_NICE.
    """
    count = len(addresses)
    pages = (ctypes.c_uint64 * count)(*addresses)
    targets = (_int * count)(*nodes)
    flags = MPOL_MF_MOVE_ALL if shared else MPOL_MF_MOVE
    status = (_int * count)(*[-errno.EAGAIN] * count)
    _move_pages(count, ctypes.addressof(pages), ctypes.addressof(targets), ctypes.addressof(status), flags)
    return list(status)


def _move_pages(count: int, pages: int, nodes: int, status: int, flags: int) -> None:
    _check(_syscall(_NUMBERS["move_pages"], 0, count, pages, nodes, status, flags))
