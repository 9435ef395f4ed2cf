"""The pools of huge pages, as sysfs shows them (Documentation/admin-guide/mm/hugetlbpage.rst)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.host import syscalls
from ktaskfs.host.files import read_file
from ktaskfs.units import Nid, parse_cpulist

if TYPE_CHECKING:
    from ktaskfs.host.kernel import Kernel

_POOLS: Final = "kernel/mm/hugepages"
_NODES: Final = "devices/system/node"


class Pool(NamedTuple):
    """The huge pages of one size, in pages, of the whole machine (``node`` None) or of one node.

    ``free`` includes the reserved ones: ``free - reserved`` are available. The kernel keeps no reservations
    for single nodes, so there ``reserved`` is 0. ``surplus`` pages exceed the configured size of the pool, and
    ``overcommit`` is their maximum (for one node: 0).
    """

    size: int
    node: Nid | None
    total: int
    free: int
    reserved: int
    surplus: int
    overcommit: int

    @property
    def available(self) -> int:
        """Pages that are neither used nor reserved."""
        return max(0, self.free - self.reserved)

    @property
    def obtainable(self) -> int:
        """Maximum available pages, if memory suffices for all surplus ones."""
        return self.available + max(0, self.overcommit - self.surplus)


def read_pools(kernel: Kernel) -> tuple[Pool, ...]:
    """The machine's pools, smallest pages first; empty on a kernel without hugetlbfs."""
    return _read_pools(kernel, _POOLS, None)


def read_node_pools(kernel: Kernel) -> tuple[Pool, ...]:
    """The pools of each NUMA node, by node, then by size."""
    nodes = sorted(int(name[4:]) for name in kernel.list_sys(_NODES) if name[:4] == "node" and name[4:].isdigit())
    return tuple(pool for nid in nodes for pool in _read_pools(kernel, f"{_NODES}/node{nid}/hugepages", Nid(nid)))


def pool_of(kernel: Kernel, size: int) -> Pool | None:
    """The machine's pool of pages of ``size`` bytes, or None."""
    return next((pool for pool in read_pools(kernel) if pool.size == size), None)


def free_on_own_nodes(kernel: Kernel, size: int) -> tuple[str, int]:
    """The memory nodes of this process (cpuset.mems), as a list, and the free pages there.

    Raises OSError, or NotPermitted if the label of this process hides them.
    """
    lines = (line.partition(":") for line in kernel.read_proc("self/status").splitlines())
    nodes = next((text.strip() for key, _, text in lines if key == "Mems_allowed_list"), "")
    own = parse_cpulist(nodes) if nodes else ()
    return nodes, sum(pool.free for pool in read_node_pools(kernel) if pool.size == size and pool.node in own)


def default_size(kernel: Kernel) -> int:
    """Bytes of the machine's default huge page; 0 on a kernel without huge pages."""
    lines = (line.split() for line in kernel.read_proc("meminfo").splitlines())
    return next((int(words[1]) << 10 for words in lines if words[0] == "Hugepagesize:"), 0)


class NodePool:
    """One node's pool, open for changes: the open(2) checks the permission. Methods raise OSError."""

    def __init__(self, directory: int, fd: int) -> None:
        self._directory = directory
        self._fd = fd

    def counts(self) -> NodeCounts:
        """The current numbers, read one after another."""
        return NodeCounts(*(self._read(key) for key in ("nr_hugepages", "free_hugepages", "surplus_hugepages")))

    def persistent(self) -> int:
        """The persistent pages: all except surplus ones."""
        counts = self.counts()
        return counts.total - counts.surplus

    def resize(self, pages: int) -> None:
        """Request this many persistent pages. The kernel gives what it can, and reports success."""
        os.pwrite(self._fd, str(pages).encode(), 0)

    def _read(self, key: str) -> int:
        return int(read_file(key, self._directory))

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self._fd)
        os.close(self._directory)


class NodeCounts(NamedTuple):
    """Pages of one node's pool; ``total`` and ``free`` include surplus pages, which the kernel removes when they are
    freed."""

    total: int
    free: int
    surplus: int


def open_node_pool(size: int, node: int) -> NodePool:
    """Open the pool of pages of ``size`` bytes on ``node`` through this process's own /sys, for changes.

    In a worker that is the caller's /sys, so the worker can change only what the caller can.
    Raises OSError: EACCES, EROFS, ENOENT (also where /sys is not sysfs).
    """
    path = f"/sys/{_NODES}/node{node}/hugepages/hugepages-{size >> 10}kB"
    directory = _require_sysfs(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return NodePool(directory, _require_sysfs(os.open("nr_hugepages", flags, dir_fd=directory)))
    except OSError:
        os.close(directory)
        raise


def _require_sysfs(fd: int) -> int:
    """``fd``; if it is not a file of sysfs, closes it and raises OSError."""
    if syscalls.filesystem_magic(fd) != syscalls.SYSFS_MAGIC:
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return fd


def _read_pools(kernel: Kernel, directory: str, node: Nid | None) -> tuple[Pool, ...]:
    pools = []
    for name in kernel.list_sys(directory):
        kilobytes = name.removeprefix("hugepages-").removesuffix("kB")
        if not kilobytes.isdigit():
            continue

        def count(key: str, where: str = f"{directory}/{name}") -> int:
            return int(kernel.read_sys(f"{where}/{key}"))

        pools.append(
            Pool(
                size=int(kilobytes) << 10,
                node=node,
                total=count("nr_hugepages"),
                free=count("free_hugepages"),
                reserved=0 if node is not None else count("resv_hugepages"),
                surplus=count("surplus_hugepages"),
                overcommit=0 if node is not None else count("nr_overcommit_hugepages"),
            )
        )
    return tuple(sorted(pools, key=lambda pool: pool.size))
