"""The limit of concurrent helper threads, in total and for each NUMA node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktaskfs.ktask.arithmetic import DEFAULT_CPU_PERCENT, helper_limit
from ktaskfs.ktask.lock import OwnedLock
from ktaskfs.span import NO_NODE

if TYPE_CHECKING:
    from ktaskfs.ktask.machine import Machine


class HelperBudget:
    """The limit of helper threads for all jobs with this budget (``ktask_rlim_*``, kernel/ktask.c, v2 to v4).

    The number of helpers is limited to ``cpu_percent`` of the CPUs, and the number pinned to a NUMA node to the same
    share of its CPUs; the others run anywhere. Only the CPUs of the creating thread count. The
    first thread of a job is not a helper and always runs. A budget does not survive a fork: make a new one in the
    child, because the copy still counts the parent's helpers, and its lock may be held. Raises ValueError if
    ``cpu_percent`` is not from 0 to 100.
    """

    def __init__(self, machine: Machine, cpu_percent: int = DEFAULT_CPU_PERCENT) -> None:
        if not 0 <= cpu_percent <= 100:
            raise ValueError(f"cpu_percent is {cpu_percent}")
        self._machine = machine
        self._allowed = machine.placement().cpus
        self._cpu_percent = cpu_percent
        self._limit = helper_limit(machine.cpus(), cpu_percent)
        # Guards the fields below. Last in the order: a scheduler's lock may be held when it is taken, and no lock of
        # this package is taken under it.
        self._lock = OwnedLock()
        self._hired: dict[object, int] = {}  # each helper, and the node that it is pinned to
        self._limit_on: dict[int, int] = {}

    def hire(self, helper: object) -> bool:
        """Count one more helper, which may be any object; False: the limit is reached, and it must not run.

        The caller notes ``helper`` before the call, so that it can be dismissed after an interrupt at any moment.
        Hiring the same one twice counts once.
        """
        with self._lock:
            granted = helper in self._hired or len(self._hired) < self._limit
            if granted:
                self._hired.setdefault(helper, NO_NODE)
            return granted

    def dismiss(self, helper: object) -> None:
        """Stop counting the helper and its pin; does nothing if it was not hired."""
        with self._lock:
            self._hired.pop(helper, None)

    def pin(self, helper: object, nid: int) -> bool:
        """Pin a hired helper to the CPUs of NUMA node ``nid``, and to no other node any more, if the limit allows it.

        True: it counts there until it is pinned elsewhere or dismissed. False, as always for NO_NODE: it is not pinned.
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
