"""Turns: requests are read as fast as possible, and served round-robin by user, one request at a time.

So each user delays others by only one request at a time. Root has every second turn, so it waits for only one user.
"""

from __future__ import annotations

import contextlib
import errno
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.errors import KtaskfsError
from ktaskfs.quota import ROOT, Quota

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OF_ONE_MAX: Final = 4096
"""Maximum waiting requests of one user. It is large, because a refused thread retries at once, and would fill the
kernel's queue in front of others."""
IN_ALL_MAX: Final = 4608
"""Maximum waiting requests of all users. Each holds a buffer."""
WRITES_OF_ONE_MAX: Final = 128 << 10
"""Maximum bytes of one user's pending writes. The kernel sends one write at a time to each file."""
WRITES_IN_ALL_MAX: Final = 1 << 20
"""Maximum bytes of all pending writes. A parsed command takes some sixteen times its size: libfuse's buffer, the
bytes, a text of four bytes per character, its lines, and the parsed values."""
HEARD_MAX: Final = 16
"""Requests to read before the next turn, so that new users enter the circle. Not more, because each refused one takes
time of others, and the session reads no more at its limit of pending requests."""


class TooManyRequests(KtaskfsError):
    """The user has too many waiting requests (EAGAIN)."""

    default_errno = errno.EAGAIN


class _Request:
    """A request that waits."""

    __slots__ = ("decided", "refused")

    def __init__(self) -> None:
        self.decided = trio.Event()
        self.refused = False


@dataclass(slots=True)
class _User:
    """The waiting requests of one user. Lookups go first, because the kernel holds a directory's lock during them."""

    lookups: deque[_Request] = field(default_factory=deque)
    others: deque[_Request] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.lookups) + len(self.others)

    def next(self) -> _Request:
        return (self.lookups or self.others).popleft()

    def newest(self) -> _Request:
        return (self.others or self.lookups).pop()


class Turns:
    """Lets one request after the other begin. A sleeping request does not delay others."""

    def __init__(self, unread: Callable[[], object]) -> None:
        """``unread`` returns whether there are unread requests."""
        self._unread = unread
        self._users: dict[int, _User] = {}
        """Users with waiting requests, in the order of their turns."""
        self._waiting = 0
        self._root_was_last = False
        self._over = False
        self._any = trio.Event()
        self._writes = Quota(
            "bytes of pending writes", each=WRITES_OF_ONE_MAX, total=WRITES_IN_ALL_MAX, refusal=TooManyRequests
        )

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._waiting

    @contextlib.contextmanager
    def writing(self, uid: int, size: int) -> Iterator[None]:
        """A context for a write of ``size`` bytes, from before its turn until its answer. Raises TooManyRequests."""
        self._writes.take(uid, size)
        try:
            yield
        finally:
            self._writes.give_back(uid, size)

    def free(self) -> bool:
        """Whether a request may begin at once: there is no other, or the mount has ended."""
        return self._over or not (self._waiting or self._unread())

    async def take(self, uid: int, *, lookup: bool = False) -> None:
        """Return when a request of ``uid`` may begin, at once if it is ``free``.

        Without a wait it is not a checkpoint. Raises TooManyRequests, never for root.
        """
        if self.free():
            return
        if uid != ROOT:
            self._make_room(uid)
        request = _Request()
        user = self._users.setdefault(uid, _User())
        (user.lookups if lookup else user.others).append(request)
        self._waiting += 1
        self._any.set()
        try:
            await request.decided.wait()
        except trio.Cancelled:
            if not request.decided.is_set():
                (user.lookups if lookup else user.others).remove(request)
                self._settle(uid, request)
            raise
        if request.refused:
            raise TooManyRequests("you have too many pending requests")

    def _make_room(self, uid: int) -> None:
        """Raise TooManyRequests if ``uid`` has the most, else refuse a request of the user with the most."""
        own = len(self._users.get(uid, ()))
        if own < OF_ONE_MAX and self._waiting < IN_ALL_MAX:
            return
        others = (each for each in self._users if each != ROOT)
        greatest = max(others, key=lambda each: len(self._users[each]), default=uid)
        if own >= OF_ONE_MAX or greatest == uid or greatest not in self._users:
            raise TooManyRequests("you have too many pending requests")
        refused = self._users[greatest].newest()
        refused.refused = True
        self._settle(greatest, refused)

    def _settle(self, uid: int, request: _Request) -> None:
        """``request`` was removed and no longer waits."""
        self._waiting -= 1
        if not self._users[uid]:
            del self._users[uid]
        request.decided.set()

    async def run(self) -> None:
        """Give turns until cancelled. Then all waiting requests begin at once."""
        try:
            while True:
                if not self._waiting:
                    self._any = trio.Event()
                    await self._any.wait()
                for _ in range(HEARD_MAX):
                    if not self._unread():
                        break
                    await trio.lowlevel.checkpoint()
                self._give()
                await trio.lowlevel.checkpoint()
        finally:
            self._over = True
            while self._users:
                self._give()

    def _give(self) -> None:
        uid = self._next_user()
        user = self._users.pop(uid)
        self._users[uid] = user  # to the end of the circle
        self._settle(uid, user.next())

    def _next_user(self) -> int:
        """The first of the circle, or root every second time."""
        alone = len(self._users) == 1
        self._root_was_last = ROOT in self._users and (alone or not self._root_was_last)
        return ROOT if self._root_was_last else next(uid for uid in self._users if uid != ROOT)
