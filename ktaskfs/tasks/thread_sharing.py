"""Deal helper threads to running tasks: the share of the CPUs is divided evenly by user, then by task.

The first thread of a task always runs, and does not count, as in v3 of the kernel series, which limits the helpers of
all tasks together to 80 % of the CPUs (ktask_rlim_max).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

T = TypeVar("T", bound="Hashable")


def helper_limit(cpus: int, percent: int) -> int:
    """Maximum helper threads of all tasks together on ``cpus`` CPUs."""
    return cpus * percent // 100


class Claim(NamedTuple):
    """The claim of a task: its user, the number of threads that it can use, and their CPUs."""

    user: Hashable
    threads: int
    cpus: frozenset[int]


def deal_threads(claims: Mapping[T, Claim], cpus: frozenset[int], percent: int) -> dict[T, int]:
    """Threads for each task, at least 1 and at most its claim.

    A task gets a helper only while every known CPU set that contains the task's has fewer helpers than its share, so a
    task that is confined to few CPUs leaves the other helpers to other tasks. The sets are ``cpus``, all CPUs, and
    those of the tasks.

    The helpers are divided evenly among users, and each user's evenly among the user's tasks, so many tasks of one user
    do not reduce another user's share. Ties go to the earlier task.
    """
    sets = {cpus, *(claim.cpus for claim in claims.values())}
    left = {each: helper_limit(len(each), percent) for each in sets}
    above = {each: [other for other in sets if each <= other] for each in sets}
    users: dict[Hashable, deque[T]] = {}
    for task, claim in claims.items():
        if claim.threads > 1:
            users.setdefault(claim.user, deque()).append(task)
    granted = dict.fromkeys(claims, 1)
    while users:
        for user, hungry in list(users.items()):
            while hungry:
                task = hungry.popleft()
                containing = above[claims[task].cpus]
                if all(left[each] for each in containing):
                    for each in containing:
                        left[each] -= 1
                    granted[task] += 1
                    if granted[task] < claims[task].threads:
                        hungry.append(task)
                    break
            if not hungry:
                del users[user]
    return granted
