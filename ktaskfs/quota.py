"""How much of something scarce each user may hold: tasks, descriptors, streams, memory of open files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.errors import KtaskfsError

ROOT: Final = 0
FEW_PART: Final = 1024
"""One part in so many of the total is a few. It then takes some 500 users to use up the half that is for few."""
ROOT_PART: Final = 16
"""One part in so many of the total is kept for root."""


def room(total: int, user: int, held: int) -> int:
    """How much of ``total`` all users together may hold, once ``user`` holds ``held``.

    Half of the total is for users that hold a FEW_PART of it or less, so that many greedy users leave something for the
    others, and a ROOT_PART is root's alone.
    """
    if user == ROOT:
        return total
    return (total if held <= max(1, total // FEW_PART) else total // 2) - total // ROOT_PART


class Quota:
    """Shares ``total`` of ``what`` out among users, as ``room`` says.

    A user may hold ``each`` at most, root half of the total. ``observers`` are called with the user and the refusal.
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
        """Count ``amount`` more for ``user``; raises the refusal, and then counts nothing."""
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
        """What ``user`` holds now."""
        return self._held.get(user, 0)
