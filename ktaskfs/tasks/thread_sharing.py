"""How many helper threads each running task may have: the CPUs' share is dealt evenly, per user, then per task.

The first thread of a task always runs, and is not counted. So it is in v3 of the kernel series, which caps the
helpers of all tasks together at 80 % of the CPUs (ktask_rlim_max).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

T = TypeVar("T", bound="Hashable")
U = TypeVar("U", bound="Hashable")


def helper_limit(cpus: int, percent: int) -> int:
    """Helper threads that all tasks together may have on ``cpus`` online CPUs."""
    return cpus * percent // 100


def deal_threads(wanted: Mapping[T, int], helpers: int, user_of: Callable[[T], Hashable]) -> dict[T, int]:
    """Threads for each task, at least 1 and at most what it wants, with ``helpers`` beyond the first ones in all.

    The helpers are dealt evenly among users, and those of each user evenly among the user's tasks: many tasks of one
    user leave another user's only task its share. Ties go to the earlier task.
    """
    users: dict[Hashable, dict[T, int]] = {}
    for task, threads in wanted.items():
        users.setdefault(user_of(task), {})[task] = threads - 1
    shares = _deal({user: sum(tasks.values()) for user, tasks in users.items()}, helpers)
    dealt = {user: _deal(tasks, shares[user]) for user, tasks in users.items()}
    return {task: 1 + dealt[user_of(task)][task] for task in wanted}


def _deal(wanted: Mapping[U, int], amount: int) -> dict[U, int]:
    """Parts of ``amount``: nobody gets more than is wanted, or one more while another who wants one has fewer."""
    granted = dict.fromkeys(wanted, 0)
    hungry = [each for each, number in wanted.items() if number]
    while amount and hungry:
        for each in hungry[:amount]:
            granted[each] += 1
        amount -= min(amount, len(hungry))
        hungry = [each for each in hungry if granted[each] < wanted[each]]
    return granted
