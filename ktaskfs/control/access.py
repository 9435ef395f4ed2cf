"""The rights to create tasks, and to see other users' tasks."""

from __future__ import annotations

from typing import NamedTuple


class Access(NamedTuple):
    """The mount options uid, gid, mode and hidepid; the last as in procfs(5)."""

    uid: int
    gid: int
    mode: int = 0o660
    hidepid: int = 0

    def may_follow(self, uid: int, owner: int) -> bool:
        """Whether ``uid`` may follow a task of ``owner``, and list its files."""
        return self.hidepid < 1 or uid in (0, owner)

    def may_know(self, uid: int, owner: int) -> bool:
        """Whether ``uid`` may know that a task of ``owner`` exists."""
        return self.hidepid < 2 or uid in (0, owner)
