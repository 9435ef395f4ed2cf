"""How many helper threads there may be at one time, in all and for each NUMA node."""

from __future__ import annotations

from threading import Lock

from ktaskfs.ktask.arithmetic import DEFAULT_CPU_PERCENT, helper_limit
from ktaskfs.ktask.machine import NO_NODE, Machine


class HelperBudget:
    """Helper threads for all jobs that are given this budget (``ktask_rlim_*``, kernel/ktask.c, v2 to v4).

    They may be as many as a share of the CPUs, and pinned to a NUMA node as many as that share of its CPUs; the
    rest run anywhere. CPUs are those that the thread which makes the budget may use. The first thread of a job is no
    helper and always runs. Raises ValueError for a share that is not from 0 to 100.
    """

    def __init__(self, machine: Machine, cpu_percent: int = DEFAULT_CPU_PERCENT) -> None:
        if not 0 <= cpu_percent <= 100:
            raise ValueError(f"cpu_percent is {cpu_percent}")
        self._machine = machine
        self._allowed = machine.placement().cpus
        self._cpu_percent = cpu_percent
        self._lock = Lock()  # guards _free and _free_on
        self._free = helper_limit(machine.cpus(), cpu_percent)
        self._free_on: dict[int, int] = {}

    def hire(self) -> bool:
        """Take one helper out of the budget, if there is one."""
        with self._lock:
            granted = self._free > 0
            self._free -= granted
            return granted

    def dismiss(self) -> None:
        """Give one back."""
        with self._lock:
            self._free += 1

    def pin(self, nid: int) -> bool:
        """May a helper be pinned to the CPUs of this node? If so it counts there until ``unpin``."""
        if nid == NO_NODE:
            return False
        with self._lock:
            if nid not in self._free_on:
                self._free_on[nid] = helper_limit(len(self._machine.node_cpus(nid) & self._allowed), self._cpu_percent)
            granted = self._free_on[nid] > 0
            self._free_on[nid] -= granted
            return granted

    def unpin(self, nid: int) -> None:
        """A helper that was pinned there is not any more; nothing for NO_NODE."""
        if nid != NO_NODE:
            with self._lock:
                self._free_on[nid] += 1
