"""Quotas of users for scarce resources: tasks, descriptors, streams, memory of open files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.errors import KtaskfsError

ROOT: Final = 0
FEW_PART: Final = 1024
"""Divisor of the total for a small holding. Some 500 users then use up the half for small holdings."""
ROOT_PART: Final = 16
"""Divisor of the total for root's reserve."""


def room(total: int, user: int, held: int) -> int:
    """The maximum of ``total`` for all users together, if ``user`` holds ``held``.

    Half of the total is for users that hold a FEW_PART of it or less, so that many greedy users leave room for others,
    and a ROOT_PART is only for root.
    """
    if user == ROOT:
        return total
    return (total if held <= max(1, total // FEW_PART) else total // 2) - total // ROOT_PART


class Quota:
    """Shares ``total`` of ``what`` among users, by ``room``.

    A user may hold at most ``each``, root half of the total. ``observers`` are called with the user and the refusal.
    """

    def __init__(self, what: str, *, each: int, total: int, refusal: Callable[[str], KtaskfsError]) -> None:
        self.observers: list[Callable[[int, KtaskfsError], None]] = []
        self._what = what
        self._each = each
        self._total = total
        self._refusal = refusal
        self._held: dict[int, int] = {}
        self._used = 0

    def take(self, user: int, amount: int = 1) -> None:
        """Count ``amount`` more for ``user``. Raises the refusal, and then counts nothing."""
        held = self.held(user) + amount
        most = self._total // 2 if user == ROOT else self._each
        if held > most:
            self._refuse(user, f"you hold {self.held(user)} {self._what}; the limit of a user is {most}")
        if self._used + amount > room(self._total, user, held):
            all_users = f"all users together {self._used} of {self._total}"
            self._refuse(user, f"you hold {self.held(user)} {self._what}, {all_users}: the rest is for others")
        self._held[user] = held
        self._used += amount

    def _refuse(self, user: int, message: str) -> None:
        error = self._refusal(message)
        for observer in self.observers:
            observer(user, error)
        raise error

    def give_back(self, user: int, amount: int = 1) -> None:
        """Count ``amount`` less for ``user``."""
        self._used -= amount
        held = self._held.pop(user, 0) - amount
        if held:
            self._held[user] = held

    def held(self, user: int) -> int:
        """The current holding of ``user``."""
        return self._held.get(user, 0)
