"""CPUs and NUMA nodes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.units import Nid, parse_cpulist

if TYPE_CHECKING:
    from ktaskfs.host.kernel import Kernel

_NODES: Final = "devices/system/node"


class NumaNode(NamedTuple):
    """A NUMA node: its online CPUs (none, for memory alone), and its memory in bytes (none, for CPUs alone).

    ``reclaimable`` is memory that the kernel can reclaim from files and its own caches.
    """

    nid: Nid
    cpus: tuple[int, ...]
    total: int
    free: int
    reclaimable: int


class MachineMemory(NamedTuple):
    """Bytes of memory of the whole machine; ``available`` is MemAvailable, an estimate, without swap."""

    total: int
    available: int


def read_memory(kernel: Kernel) -> MachineMemory:
    """The machine's memory now. Raises OSError or NotPermitted."""
    meminfo = _meminfo(kernel.read_proc("meminfo"))
    return MachineMemory(meminfo["MemTotal:"], meminfo["MemAvailable:"])


def usable_cpus(pid: int = 0) -> tuple[int, ...]:
    """The CPUs of a process, 0 for this one: online, and allowed by its affinity and cpuset.

    Empty if there is no such process, or if its label forbids the question (SELinux, getsched).
    """
    try:
        return tuple(sorted(os.sched_getaffinity(pid)))
    except (PermissionError, ProcessLookupError):
        return ()


def read_nodes(kernel: Kernel) -> tuple[NumaNode, ...]:
    """The online nodes in order; a kernel without NUMA has one, number 0, with everything."""
    try:
        online = parse_cpulist(kernel.read_sys(f"{_NODES}/online"))
    except FileNotFoundError:
        return (_node(Nid(0), usable_cpus(), _meminfo(kernel.read_proc("meminfo"))),)
    return tuple(_read_node(kernel, Nid(nid)) for nid in online)


def nodes_with_cpus(kernel: Kernel) -> frozenset[int]:
    """The numbers of the nodes that have CPUs; empty on a kernel without NUMA."""
    try:
        return frozenset(parse_cpulist(kernel.read_sys(f"{_NODES}/has_cpu")))
    except FileNotFoundError:
        return frozenset()


def _read_node(kernel: Kernel, nid: Nid) -> NumaNode:
    cpulist = kernel.read_sys(f"{_NODES}/node{nid}/cpulist")
    meminfo = _meminfo(kernel.read_sys(f"{_NODES}/node{nid}/meminfo"))
    return _node(nid, parse_cpulist(cpulist) if cpulist else (), meminfo)


def _node(nid: Nid, cpus: tuple[int, ...], meminfo: dict[str, int]) -> NumaNode:
    reclaimable = sum(meminfo.get(f"{key}:", 0) for key in ("Active(file)", "Inactive(file)", "KReclaimable"))
    return NumaNode(nid, cpus, meminfo["MemTotal:"], meminfo["MemFree:"], reclaimable)


def _meminfo(text: str) -> dict[str, int]:
    """Key to bytes, of /proc/meminfo and of a node's, whose lines begin with ``Node N``."""
    lines = (line.split() for line in text.splitlines())
    return {words[-3]: int(words[-2]) << 10 for words in lines if len(words) >= 3 and words[-1] == "kB"}
