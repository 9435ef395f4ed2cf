"""The processes that specs name by their numbers: when did they begin?

During execve(2) of a process, which may wait for this daemon or forever for another server of FUSE, a read of its
/proc/PID/stat waits too (Linux 6.18). Nothing else gives the start time, so threads read it.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.errors import TargetError
from ktaskfs.host.credentials import start_time
from ktaskfs.user_threads import UserThreads, in_thread

if TYPE_CHECKING:
    from collections.abc import Collection

PATIENCE: Final = 0.9
"""Seconds for an answer, so that a write is answered within about a second."""
OF_ONE_MAX: Final = 2
"""Threads for one user."""
OF_ROOT_MAX: Final = 16
"""Threads for root, who also names processes of others, which may hang."""


class NamedProcesses:
    """Answers within PATIENCE, and never holds up the trio thread."""

    def __init__(self) -> None:
        self._threads = UserThreads(of_one=OF_ONE_MAX, of_root=OF_ROOT_MAX)

    async def began(self, uid: int, pids: Collection[int]) -> dict[int, int | None]:
        """By number, when the processes began, in clock ticks since boot; None where there is no process.

        ``uid`` is the user who asks. Raises NoThread, and TargetError, ETIMEDOUT without an answer in time.
        """
        if not pids:
            return {}
        with trio.move_on_after(PATIENCE):
            return await in_thread(_began, pids, limiter=self._threads.of(uid))
        which = f"process {next(iter(pids))}" if len(pids) == 1 else "a process that the specs name"
        text = f"{which} could not be looked at in {PATIENCE} s: it may hang in execve(2); try again"
        raise TargetError(text, errno=errno.ETIMEDOUT)

    async def require(self, uid: int, pid: int, began: int | None) -> None:
        """Raise TargetError (ESTALE) if the process ``pid`` did not begin at ``began``: the number was used again."""
        now = (await self.began(uid, [pid]))[pid]
        if now not in (began, None):  # if there is none, the operation says so
            text = f"process {pid} is not the one that the spec named when it was queued"
            raise TargetError(text, errno=errno.ESTALE)


def _began(pids: Collection[int]) -> dict[int, int | None]:
    found = {}
    for pid in pids:
        try:
            found[pid] = start_time(pid)
        except OSError as error:  # no descriptor is left, or it is another user's, with hidepid=1
            raise TargetError.from_os(error, f"look at process {pid}") from error
    return found
