"""A process that holds huge pages in one way: ``python huge_holder.py HOW PAGE_SIZE [PATH]``

It prints a line when it does (of "sysv detached" the segment's number), and ends with its standard input.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SHARED: Final = 1
PRIVATE: Final = 2
ANONYMOUS: Final = 0x20
NORESERVE: Final = 0x4000
HUGETLB: Final = 0x40000
SHIFT: Final = 26
"""Where the size of page is in the flags of mmap(2), memfd_create(2) and shmget(2), as its logarithm."""
SHM_HUGETLB: Final = 0o4000
IPC_CREAT: Final = 0o1000
PR_SET_PDEATHSIG: Final = 1
LIBC: Final = ctypes.CDLL(None, use_errno=True)
for _function in (LIBC.mmap, LIBC.shmat):
    _function.restype = ctypes.c_void_p
LIBC.shmget.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int]
LIBC.shmdt.argtypes = [ctypes.c_void_p]
FAILED: Final = ctypes.c_void_p(-1).value


def size_flag(page_size: int) -> int:
    return (page_size.bit_length() - 1) << SHIFT


def mapped(fd: int, flags: int, pages: int, page_size: int) -> int:
    """The address of new memory; nothing has touched it."""
    extra = HUGETLB | ANONYMOUS | size_flag(page_size) if fd < 0 else 0
    arguments = (None, ctypes.c_size_t(pages * page_size), 3, flags | extra, fd, ctypes.c_long(0))
    address = LIBC.mmap(*arguments)
    assert address != FAILED, os.strerror(ctypes.get_errno())
    return int(address)


def touch(address: int, pages: int, page_size: int) -> None:
    for number in range(pages):
        ctypes.memset(address + number * page_size, 1, 1)


def of_file(path: str, page_size: int, *, flags: int = SHARED, pages: int, touched: int) -> int:
    """Map ``pages`` pages of a file that is open no more, and touch some."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, pages * page_size)
    address = mapped(fd, flags, pages, page_size)
    os.close(fd)
    touch(address, touched, page_size)
    return address


def of_memfd(page_size: int) -> int:
    fd = os.memfd_create("a, guest", os.MFD_HUGETLB | size_flag(page_size))
    os.ftruncate(fd, 3 * page_size)
    touch(mapped(fd, SHARED, 3, page_size), 2, page_size)
    return fd


def of_segment(page_size: int) -> tuple[int, int]:
    flags = SHM_HUGETLB | size_flag(page_size) | IPC_CREAT | 0o600
    number = LIBC.shmget(0, ctypes.c_size_t(3 * page_size), flags)
    assert number >= 0, os.strerror(ctypes.get_errno())
    address = LIBC.shmat(number, None, 0)
    assert address != FAILED, os.strerror(ctypes.get_errno())
    touch(address, 1, page_size)
    return number, address


def file_open_and_deleted(path: str, page_size: int) -> None:
    of_file(path, page_size, pages=2, touched=2)
    os.open(path, os.O_RDONLY)
    os.unlink(path)


def file_mapped_and_deleted(path: str, page_size: int) -> None:
    of_file(path, page_size, pages=2, touched=1)
    os.unlink(path)


def memfd_closed(path: str, page_size: int) -> None:
    os.close(of_memfd(page_size))


def anonymous(flags: int, pages: int, touched: int) -> Callable[[str, int], None]:
    def hold(path: str, page_size: int) -> None:
        touch(mapped(-1, flags, pages, page_size), touched, page_size)

    return hold


def private_forked(path: str, page_size: int) -> None:
    """Two pages that parent and child share, and one that the child has got for itself."""
    address = mapped(-1, PRIVATE, 4, page_size)
    touch(address, 2, page_size)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        touch(address, 1, page_size)
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)
    print(child, end=" ")


def segment(path: str, page_size: int) -> None:
    number, _ = of_segment(page_size)
    print(number, end=" ")


def segment_detached(path: str, page_size: int) -> None:
    number, address = of_segment(page_size)
    LIBC.shmdt(address)
    print(number, end=" ")


HOW: Final[dict[str, Callable[[str, int], object]]] = {
    "file": lambda path, size: of_file(path, size, pages=4, touched=3),
    "file, nothing touched": lambda path, size: of_file(path, size, pages=3, touched=0),
    "file, nothing reserved": lambda path, size: of_file(path, size, flags=SHARED | NORESERVE, pages=3, touched=1),
    "file, private": lambda path, size: of_file(path, size, flags=PRIVATE, pages=3, touched=1),
    "file, open and deleted": file_open_and_deleted,
    "file, mapped and deleted": file_mapped_and_deleted,
    "memfd": lambda path, size: of_memfd(size),
    "memfd, closed": memfd_closed,
    "shared": anonymous(SHARED, 3, 1),
    "shared, nothing reserved": anonymous(SHARED | NORESERVE, 3, 1),
    "private": anonymous(PRIVATE, 3, 1),
    "private, nothing reserved": anonymous(PRIVATE | NORESERVE, 3, 1),
    "private, forked": private_forked,
    "sysv": segment,
    "sysv, detached": segment_detached,
}


def main() -> None:
    how, page_size, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    HOW[how](path, page_size)
    print(flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
