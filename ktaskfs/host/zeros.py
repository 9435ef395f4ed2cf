"""A descriptor that reads as zeros."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ktaskfs.host.kernel import Kernel

HOLE: Final = 1 << 30


@dataclass(frozen=True)
class Zeros:
    """``fd`` gives zeros: ``length`` bytes of them from its beginning, or without end if that is None."""

    fd: int
    length: int | None

    @classmethod
    def open(cls, kernel: Kernel) -> Zeros:
        """The hole of a file of huge pages, of which none is ever allocated; /dev/zero where there is no such file.

        For a hole, hugetlbfs has a whole huge page zeroed in one go (hugetlbfs_read_iter in fs/hugetlbfs/inode.c), as
        fast as memset; /dev/zero (read_iter_zero in drivers/char/mem.c) goes by pages of 4 KiB, and is a tenth slower.
        """
        try:
            fd = os.memfd_create("zeros", os.MFD_CLOEXEC | os.MFD_HUGETLB)
        except OSError:  # a kernel without huge pages
            return cls(os.dup(kernel.zero), None)
        try:
            os.ftruncate(fd, HOLE)
        except OSError:  # longer than the caller may make a file (RLIMIT_FSIZE)
            os.close(fd)
            return cls(os.dup(kernel.zero), None)
        return cls(fd, HOLE)

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)
