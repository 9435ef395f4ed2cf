"""How many helper threads each running task may have: the CPUs' share is dealt out evenly.

The first thread of a task always runs, and is not counted. So it is in v3 of the kernel series, which caps the
helpers of all tasks together at 80 % of the CPUs (ktask_rlim_max).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

T = TypeVar("T", bound="Hashable")


def helper_limit(cpus: int, percent: int) -> int:
    """Helper threads that all tasks together may have on ``cpus`` online CPUs."""
    return cpus * percent // 100


def deal_threads(wanted: Mapping[T, int], helpers: int) -> dict[T, int]:
    """Threads for each task, at least 1 and at most what it wants, with ``helpers`` beyond the first ones in all.

    No task gets a further helper while another task that wants one has fewer. Ties go to the earlier task.
    """
    granted = dict.fromkeys(wanted, 1)
    hungry = [task for task, threads in wanted.items() if threads > 1]
    while helpers and hungry:
        for task in hungry[:helpers]:
            granted[task] += 1
        helpers -= min(helpers, len(hungry))
        hungry = [task for task in hungry if granted[task] < wanted[task]]
    return granted
