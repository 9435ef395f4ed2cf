"""The NUMA node of a page, and moving pages: move_pages(2); the nodes that new pages come from: get_mempolicy(2)."""

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
_POLICY_OF_ADDRESS: Final = 1 << 1
_MEMS_ALLOWED: Final = 1 << 2
"""MPOL_F_ADDR and MPOL_F_MEMS_ALLOWED."""
_PLACES: Final = frozenset({1, 2, 5})
"""MPOL_PREFERRED, MPOL_BIND and MPOL_PREFERRED_MANY: policies that name nodes to take pages from."""
_MODE: Final = 0xFF
"""The policy without its flags."""
_NODES_MAX: Final = 4096
"""Room for the nodes of any kernel."""


def nodes_of_policy(address: int) -> frozenset[int]:
    """The nodes from which the memory policy of a mapping takes the page at ``address``.

    Empty if there is no policy, or if it spreads pages over nodes. Raises OSError.
    """
    mode, nodes = _policy(address, _POLICY_OF_ADDRESS)
    return nodes if mode & _MODE in _PLACES else frozenset()


def allowed_nodes() -> frozenset[int]:
    """The memory nodes that this process may use (cpuset.mems). Raises OSError."""
    return _policy(0, _MEMS_ALLOWED)[1]


def _policy(address: int, flags: int) -> tuple[int, frozenset[int]]:
    mode = ctypes.c_int()
    mask = ctypes.create_string_buffer(_NODES_MAX // 8)
    syscalls.numbered("get_mempolicy", ctypes.addressof(mode), ctypes.addressof(mask), _NODES_MAX, address, flags)
    bits = int.from_bytes(mask.raw, "little")
    return mode.value, frozenset(nid for nid in range(bits.bit_length()) if bits >> nid & 1)


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
