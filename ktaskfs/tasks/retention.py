"""Ended tasks: the number that is kept, and the order of dropping."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ktaskfs.tasks.task import Task

RESULTS_MAX: Final = 4 << 20
"""Maximum bytes of results of one user's tasks. They are in this process and in the state directory, which is
memory. Only surveys have results of more than a line or two."""
RESULTS_TOTAL: Final = 8 << 20
"""Maximum bytes of results of all users' tasks."""


class EndedTasks:
    """The ended tasks of each user, in order of their end."""

    def __init__(self) -> None:
        self._users: dict[int, dict[Task, int]] = {}
        """By uid, the length of each task's result."""
        self._lengths: Counter[int] = Counter()
        """By uid, the sum of these."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, task: Task) -> None:
        """``task`` has ended."""
        self._users.setdefault(task.uid, {})[task] = len(task.history.result)
        self._lengths[task.uid] += len(task.history.result)
        self._count += 1

    def remove(self, task: Task) -> bool:
        """``task`` continues, or is removed. False if it had not ended."""
        tasks = self._users.get(task.uid, {})
        length = tasks.pop(task, None)
        if length is None:
            return False
        self._lengths[task.uid] -= length
        if not tasks:
            del self._users[task.uid], self._lengths[task.uid]
        self._count -= 1
        return True

    def overdue(self, most: int) -> list[Task]:
        """The tasks to drop to keep at most ``most``, RESULTS_MAX of a user's results, and RESULTS_TOTAL of all.

        Each is the oldest task of the user who has the most, so that one user cannot displace the tasks of others.
        """
        dropped: Counter[int] = Counter()
        for _ in range(self._count - most):
            dropped[max(self._users, key=lambda uid: len(self._users[uid]) - dropped[uid])] += 1
        each_may = self._results_of_each()
        for uid, length in self._lengths.items():
            if length > each_may:
                dropped[uid] = max(dropped[uid], self._excess(uid, length - each_may))
        return [task for uid, count in dropped.items() for task in islice(self._users[uid], count)]

    def _results_of_each(self) -> int:
        """Maximum bytes of results per user: less than RESULTS_MAX if the total is too large."""
        left, users = RESULTS_TOTAL, len(self._lengths)
        for length in sorted(self._lengths.values()):
            if length * users > left:
                return min(RESULTS_MAX, left // users)
            left -= length
            users -= 1
        return RESULTS_MAX

    def _excess(self, uid: int, length: int) -> int:
        """The number of oldest tasks whose results add up to ``length``."""
        count = 0
        for each in self._users[uid].values():
            if length <= 0:
                break
            length -= each
            count += 1
        return count
