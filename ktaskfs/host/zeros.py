"""A descriptor that reads as zeros."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from ktaskfs.host.kernel import Kernel

HOLE: Final = 1 << 30


class Zeros(NamedTuple):
    """``fd`` reads as zeros: ``length`` bytes from its start, or endless if None."""

    fd: int
    length: int | None

    @classmethod
    def open(cls, kernel: Kernel) -> Zeros:
        """The hole of an empty huge page file; /dev/zero without such a file.

        For a hole, hugetlbfs zeroes a whole huge page at once (hugetlbfs_read_iter in fs/hugetlbfs/inode.c), as
        fast as memset; /dev/zero (read_iter_zero in drivers/char/mem.c) works in pages of 4 KiB, and is a tenth slower.
        """
        try:
            fd = os.memfd_create("zeros", os.MFD_CLOEXEC | os.MFD_HUGETLB)
        except OSError:  # a kernel without huge pages
            return cls(os.dup(kernel.zero), None)
        try:
            os.ftruncate(fd, HOLE)
        except OSError:  # longer than the caller's RLIMIT_FSIZE
            os.close(fd)
            return cls(os.dup(kernel.zero), None)
        return cls(fd, HOLE)

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)
