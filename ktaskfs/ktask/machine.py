"""The machine for the framework: CPUs, placement of threads and memory, nice values."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Final, NamedTuple, Protocol

from ktaskfs.libc import LIBC
from ktaskfs.span import NO_NODE
from ktaskfs.units import parse_cpulist

_MPOL_PREFERRED: Final = 1
_MASK_BITS: Final = 4096
"""Room for the nodes of any kernel (MAX_NUMNODES is at most 1024)."""
_SYSCALLS: Final = {  # (set_mempolicy, get_mempolicy), from the kernel's syscall tables
    "x86_64": (238, 239),
    "aarch64": (237, 236),
    "riscv64": (237, 236),
    "loongarch64": (237, 236),
    "ppc64le": (261, 260),
    "s390x": (270, 269),
}


class Placement(NamedTuple):
    """The CPUs and memory policy of a thread; a ``policy`` of None is unknown."""

    cpus: frozenset[int]
    policy: tuple[int, frozenset[int]] | None


class Machine(Protocol):
    """The machine under a task. Missing permissions or features raise no errors: the methods do what they can."""

    def cpus(self) -> int:
        """The number of CPUs that threads may use."""

    def node_cpus(self, nid: int) -> frozenset[int]:
        """The CPUs of a NUMA node; empty if the node, or NUMA, is not known."""

    def placement(self) -> Placement:
        """The placement of the calling thread."""

    def place(self, where: Placement) -> None:
        """Move the calling thread there."""

    def nice(self) -> int:
        """The nice value of the calling thread."""

    def set_nice(self, tid: int, nice: int) -> None:
        """Change a thread's nice value, if that is permitted."""


class LinuxMachine:
    """This machine, without libnuma: affinity from the standard library, memory policy by system call."""

    def __init__(self, sys: int | None = None) -> None:
        """``sys``: an open /sys, for a process whose own may be another, or nobody's; stays open."""
        self._sys = sys
        self._set_mempolicy, self._get_mempolicy = _SYSCALLS.get(os.uname().machine, (0, 0))

    def cpus(self) -> int:
        """The number of CPUs that the calling thread may use: a container or taskset counts, unlike in the kernel."""
        return len(os.sched_getaffinity(0))

    def node_cpus(self, nid: int) -> frozenset[int]:
        try:
            # Binary, as opening text may make Python import a codec, and a process that has changed its user may not
            # be able to read that.
            path = f"devices/system/node/node{nid}/cpulist"
            with open(f"/sys/{path}" if self._sys is None else path, "rb", opener=self._open) as file:
                text = file.read().decode().strip()
        except OSError:
            return frozenset()
        return frozenset(parse_cpulist(text)) if text else frozenset()

    def _open(self, path: str, flags: int) -> int:
        return os.open(path, flags, dir_fd=self._sys)

    def placement(self) -> Placement:
        return Placement(frozenset(os.sched_getaffinity(0)), self._policy())

    def place(self, where: Placement) -> None:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, where.cpus)
        if where.policy is not None and self._set_mempolicy:
            mode, nids = where.policy
            nids = frozenset(nid for nid in nids if nid < _MASK_BITS)  # the kernel has no others
            mask = sum(1 << nid for nid in nids).to_bytes(_MASK_BITS // 8, "little")
            # Fails if a container forbids it or the kernel has no NUMA; the work still runs.
            LIBC.syscall(self._set_mempolicy, mode, mask if nids else None, ctypes.c_ulong(_MASK_BITS if nids else 0))

    def nice(self) -> int:
        return os.getpriority(os.PRIO_PROCESS, 0)

    def set_nice(self, tid: int, nice: int) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, tid, nice)

    def _policy(self) -> tuple[int, frozenset[int]] | None:
        mode = ctypes.c_int()
        mask = ctypes.create_string_buffer(_MASK_BITS // 8)
        size = ctypes.c_ulong(_MASK_BITS)
        address, flags = None, ctypes.c_ulong(0)
        if not self._get_mempolicy or LIBC.syscall(self._get_mempolicy, ctypes.byref(mode), mask, size, address, flags):
            return None
        bits = int.from_bytes(mask.raw, "little")
        return mode.value, frozenset(nid for nid in range(bits.bit_length()) if bits >> nid & 1)


def place_on_node(base: Placement, nid: int, cpus: frozenset[int]) -> Placement:
    """``base`` moved to NUMA node ``nid``, as far as ``base`` allows; ``cpus`` empty: memory only.

    The memory is preferred there, not bound, so that a full node does not make a task fail.
    """
    if nid == NO_NODE:
        return base
    return base._replace(cpus=base.cpus & cpus or base.cpus, policy=(_MPOL_PREFERRED, frozenset({nid})))
