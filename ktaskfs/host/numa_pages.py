"""move_pages(2): the NUMA node of a page, and moving pages."""

from __future__ import annotations

import ctypes
import errno
from typing import TYPE_CHECKING, Final

from ktaskfs.host import syscalls

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOVE: Final = 1 << 1
_MOVE_ALL: Final = 1 << 2
"""MPOL_MF_MOVE and MPOL_MF_MOVE_ALL; linux/mempolicy.h."""


def page_nodes(addresses: Sequence[int], pid: int = 0) -> list[int]:
    """The NUMA node of the page at each address; a negative errno where no page is mapped. move_pages(2).

    ``pid`` is the process of the addresses, 0 for this one.
    """
    count = len(addresses)
    pages = (ctypes.c_uint64 * count)(*addresses)
    status = (ctypes.c_int * count)()
    _move_pages(pid, count, ctypes.addressof(pages), 0, ctypes.addressof(status), 0)
    return list(status)


def move_pages(addresses: Sequence[int], nodes: Sequence[int], *, shared: bool = False, pid: int = 0) -> list[int]:
    """Move the page at each address to its node; returns the current node of each, or a negative errno.

    move_pages(2). -EAGAIN stands for a page without a result: the kernel gave up, for example because of a busy lock.
    ``shared``: also pages that other processes map, which needs CAP_SYS_NICE. ``pid`` as in ``page_nodes``.
    """
    count = len(addresses)
    pages = (ctypes.c_uint64 * count)(*addresses)
    targets = (ctypes.c_int * count)(*nodes)
    flags = _MOVE_ALL if shared else _MOVE
    status = (ctypes.c_int * count)(*[-errno.EAGAIN] * count)
    _move_pages(pid, count, ctypes.addressof(pages), ctypes.addressof(targets), ctypes.addressof(status), flags)
    return list(status)


def _move_pages(pid: int, count: int, pages: int, nodes: int, status: int, flags: int) -> None:
    syscalls.numbered("move_pages", pid, count, pages, nodes, status, flags)
