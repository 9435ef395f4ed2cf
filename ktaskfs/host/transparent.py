"""Transparent huge pages: their size, and the memory of this process in them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import NotSupported

if TYPE_CHECKING:
    from ktaskfs.host.kernel import Kernel

COUNTS: Final = ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped")
"""The lines of smaps that count them; proc_pid_smaps(5)."""
_ADDRESSES: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")


def huge_page_size(kernel: Kernel) -> int:
    """Bytes of one; raises NotSupported on a kernel without them."""
    try:
        return int(kernel.read_sys("kernel/mm/transparent_hugepage/hpage_pmd_size"))
    except OSError as error:
        raise NotSupported("this kernel has no transparent huge pages") from error


def bytes_in_huge_pages(kernel: Kernel, start: int, end: int) -> int:
    """Bytes in huge pages of this process's mappings that begin between two addresses; raises OSError."""
    total, inside = 0, False
    for line in kernel.read_proc("self/smaps").splitlines():
        if addresses := _ADDRESSES.match(line):
            inside = start <= int(addresses[1], 16) < end
        elif inside and line.partition(":")[0] in COUNTS:
            total += int(line.split()[1]) << 10
    return total
