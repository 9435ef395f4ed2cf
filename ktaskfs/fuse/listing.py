"""Open directories, and their quota."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ktaskfs.quota import Quota
from ktaskfs.vfs.refusals import TooMuchText

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ktaskfs.vfs import Caller, Directory, Inode

LISTING_SIZE: Final = 1024
NAME_SIZE: Final = 160
"""Bytes for an open directory, and for each of its names; about their size in Python."""
LISTINGS_OF_ONE_MAX: Final = 2 << 20
LISTINGS_IN_ALL_MAX: Final = 8 << 20
"""Maximum bytes of the open directories of one user, and of all users."""


def listings_quota() -> Quota:
    """The bytes of open directories of one mount."""
    return Quota("bytes of directories open", each=LISTINGS_OF_ONE_MAX, total=LISTINGS_IN_ALL_MAX, refusal=TooMuchText)


class Listing:
    """An open directory: its names at the first read after opendir(3) or rewinddir(3).

    It holds no inodes, because they may hold much that was removed meanwhile. It counts its bytes in ``quota``;
    ``__init__``, ``take`` and ``children`` raise the quota's refusal.
    """

    __slots__ = ("_names", "_quota", "caller", "directory")

    def __init__(self, directory: Directory, caller: Caller, quota: Quota) -> None:
        quota.take(caller.uid, LISTING_SIZE)
        self.directory = directory
        self.caller = caller
        self._quota = quota
        self._names: Sequence[str] | None = None

    def take(self) -> Sequence[str]:
        """Restart the listing, and return its names."""
        self._let_go()
        names = self.directory.names(self.caller)
        self._quota.take(self.caller.uid, NAME_SIZE * len(names))
        self._names = names
        return names

    def children(self, start: int) -> Iterator[tuple[int, str, Inode]]:
        """The children from the name with the index ``start`` on, each with its index. Removed ones are left out."""
        names = self.take() if self._names is None else self._names
        for index in range(start, len(names)):
            child = self.directory.lookup(names[index], self.caller)
            if child is not None:
                yield index, names[index], child

    def _let_go(self) -> None:
        self._quota.give_back(self.caller.uid, NAME_SIZE * len(self._names or ()))
        self._names = None

    def close(self) -> None:
        """Call it once, at the end."""
        self._let_go()
        self._quota.give_back(self.caller.uid, LISTING_SIZE)
