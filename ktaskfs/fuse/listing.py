"""Open directories, and their quota."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ktaskfs.quota import Quota
from ktaskfs.vfs.refusals import TooMuchText

if TYPE_CHECKING:
    from ktaskfs.vfs import Caller, Directory, Inode

LISTING_SIZE: Final = 1024
CHILD_SIZE: Final = 160
"""Bytes for an open directory, and for each listed child; about their size in Python."""
LISTINGS_OF_ONE_MAX: Final = 2 << 20
LISTINGS_IN_ALL_MAX: Final = 8 << 20
"""Maximum bytes of the open directories of one user, and of all users."""


def listings_quota() -> Quota:
    """The bytes of open directories of one mount."""
    return Quota("bytes of directories open", each=LISTINGS_OF_ONE_MAX, total=LISTINGS_IN_ALL_MAX, refusal=TooMuchText)


class Listing:
    """An open directory: its children at the last opendir(3) or rewinddir(3).

    It counts its bytes in ``quota``; ``__init__`` and ``children`` raise the quota's refusal.
    """

    __slots__ = ("_children", "_quota", "_rest", "caller", "directory")

    def __init__(self, directory: Directory, caller: Caller, quota: Quota) -> None:
        quota.take(caller.uid, LISTING_SIZE)
        self.directory = directory
        self.caller = caller
        self._quota = quota
        self._children: list[tuple[str, Inode]] = []
        self.take()

    def take(self) -> None:
        """Restart the listing."""
        self._quota.give_back(self.caller.uid, CHILD_SIZE * len(self._children))
        self._children = []
        self._rest = iter(self.directory.entries(self.caller))

    def children(self, start: int, count: int) -> list[tuple[str, Inode]]:
        """Some children, none if ``start`` is beyond those that were listed. Others are not made."""
        wanted = start + count - len(self._children)
        for _ in range(wanted if wanted <= count else 0):
            self._quota.take(self.caller.uid, CHILD_SIZE)  # before it is made: a refusal loses none
            child = next(self._rest, None)
            if child is None:
                self._quota.give_back(self.caller.uid, CHILD_SIZE)
                break
            self._children.append(child)
        return self._children[start : start + count]

    def close(self) -> None:
        """Call it once, at the end."""
        self._quota.give_back(self.caller.uid, LISTING_SIZE + CHILD_SIZE * len(self._children))
