"""How many helper threads each running task may have: the CPUs' share is dealt evenly, per user, then per task.

The first thread of a task always runs, and is not counted. So it is in v3 of the kernel series, which caps the
helpers of all tasks together at 80 % of the CPUs (ktask_rlim_max).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

T = TypeVar("T", bound="Hashable")


def helper_limit(cpus: int, percent: int) -> int:
    """Helper threads that all tasks together may have on ``cpus`` CPUs."""
    return cpus * percent // 100


@dataclass(frozen=True)
class Claim:
    """What a task asks for: whose it is, how many threads it can use, and the CPUs that they may run on."""

    user: Hashable
    threads: int
    cpus: frozenset[int]


def deal_threads(claims: Mapping[T, Claim], cpus: frozenset[int], percent: int) -> dict[T, int]:
    """Threads for each task, at least 1 and at most what it claims.

    A task gets a helper only while every known set of CPUs that contains the task's has fewer helpers than its share:
    a task that is confined to few CPUs leaves the helpers to those that may use the others. The sets are ``cpus``, all
    that there are, and those of the tasks.

    The helpers are dealt evenly among users, and those of each user evenly among the user's tasks: many tasks of one
    user leave another user's only task its share. Ties go to the earlier task.
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
