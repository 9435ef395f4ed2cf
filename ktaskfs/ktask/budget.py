"""How many helper threads there may be at one time, in all and for each NUMA node."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from ktaskfs.ktask.arithmetic import DEFAULT_CPU_PERCENT, helper_limit
from ktaskfs.span import NO_NODE

if TYPE_CHECKING:
    from ktaskfs.ktask.machine import Machine


class HelperBudget:
    """Helper threads for all jobs that are given this budget (``ktask_rlim_*``, kernel/ktask.c, v2 to v4).

    They may be as many as a share of the CPUs, and pinned to a NUMA node as many as that share of its CPUs; the
    rest run anywhere. CPUs are those that the thread which makes the budget may use. The first thread of a job is no
    helper and always runs. It does not survive a fork: make a new one in the child, for the copy still counts the
    parent's helpers, and its lock may be held. Raises ValueError for a share that is not from 0 to 100.
    """

    def __init__(self, machine: Machine, cpu_percent: int = DEFAULT_CPU_PERCENT) -> None:
        if not 0 <= cpu_percent <= 100:
            raise ValueError(f"cpu_percent is {cpu_percent}")
        self._machine = machine
        self._allowed = machine.placement().cpus
        self._cpu_percent = cpu_percent
        self._limit = helper_limit(machine.cpus(), cpu_percent)
        self._lock = Lock()  # guards the fields below
        self._hired: dict[object, int] = {}  # each helper, and the node that it is pinned to
        self._limit_on: dict[int, int] = {}

    def hire(self, helper: object) -> bool:
        """Count one more, which may be any object, unless they are enough; False: it must not run."""
        with self._lock:
            granted = helper in self._hired or len(self._hired) < self._limit
            if granted:
                self._hired.setdefault(helper, NO_NODE)
            return granted

    def dismiss(self, helper: object) -> None:
        """One helper less, and no pin of it; nothing if it was not hired."""
        with self._lock:
            self._hired.pop(helper, None)

    def pin(self, helper: object, nid: int) -> bool:
        """May one that is hired be pinned to the CPUs of this node, and nowhere else any more?

        If so it counts there until it is pinned elsewhere or dismissed; if not, as always for NO_NODE, it is nowhere.
        """
        with self._lock:
            self._hired[helper] = NO_NODE
            if nid == NO_NODE:
                return False
            if nid not in self._limit_on:
                cpus = self._machine.node_cpus(nid) & self._allowed
                self._limit_on[nid] = helper_limit(len(cpus), self._cpu_percent)
            granted = list(self._hired.values()).count(nid) < self._limit_on[nid]
            if granted:
                self._hired[helper] = nid
            return granted
