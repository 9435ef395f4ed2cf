"""Follows tasks to their ends, even if the daemon dies in between."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ktaskfs.cli.interrupts import INTERRUPTED
from ktaskfs.cli.mounted import let_go
from ktaskfs.errors import DaemonAway, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from ktaskfs.cli.interrupts import Interrupts
    from ktaskfs.cli.mounted import Mounted
    from ktaskfs.cli.orders import Orders

STATUS_OF: Final = {"done": 0, "planned": 0, "failed": 1, "forgotten": 1, "cancelled": 3, "interrupted": 4}
"""The exit status for each final state."""
GRAVITY: Final = (INTERRUPTED, 1, 4, 3, 0)
"""The order of precedence of several statuses."""
RETRY: Final = 0.25
"""Seconds until a daemon that does not answer is tried again."""
GONE: Final = (errno.ENOENT, errno.ENODEV)


class Standing(NamedTuple):
    """The status of a task.

    ``state`` is "forgotten" for a removed one. ``figures`` are from its stat.json, ``result`` exists after its end.
    They are old if ``stale``: the daemon does not answer.
    """

    name: str
    state: str
    figures: Mapping[str, Any]
    result: str | None = None
    stale: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing more to come."""
        return self.state in STATUS_OF


def exit_status(standings: Sequence[Standing]) -> int:
    """The exit status of a command that has followed tasks to these ends."""
    return gravest({STATUS_OF[each.state] for each in standings})


def gravest(statuses: Collection[int]) -> int:
    """The gravest of several exit statuses."""
    return next((each for each in GRAVITY if each in statuses), 0)


class _Followed:
    """One task, with its ``state`` open to be polled."""

    def __init__(self, mounted: Mounted, name: str, is_heir: Callable[[str], bool]) -> None:
        self._mounted = mounted
        self._is_heir = is_heir
        self.standing = Standing(name, "unknown", {"name": name}, stale=True)
        self.fd: int | None = None

    def look(self) -> bool:
        """Take the figures anew; returns whether anything is different."""
        before = self.standing
        try:
            self.standing = self._look()
        except DaemonAway:
            self.close()
            self.standing = before._replace(stale=True)
        return self.standing != before

    def _look(self) -> Standing:
        name = self.standing.name
        try:
            if self.fd is None:
                self.fd = self._mounted.open(f"tasks/{name}/state")
            self._rearm(self.fd)
            figures = json.loads(self._mounted.read(f"tasks/{name}/stat.json"))
            if self.standing.figures.get("created_usec", figures["created_usec"]) != figures["created_usec"]:
                return self._forgotten()
            ended = figures["state"] in STATUS_OF
            result = None
            if ended:
                result = self._mounted.read(f"tasks/{name}/result")
                self._rearm(self.fd)  # fails if another task has the name by now: the result may be that one's
        except TargetError as error:
            if error.errno not in GONE:
                raise
            return self._forgotten()
        if ended:
            self.close()
        return Standing(name, figures["state"], figures, result)

    def _rearm(self, fd: int) -> None:
        """Read what is polled, so that poll(2) waits for the next change."""
        try:
            os.pread(fd, 64, 0)
        except OSError as error:
            raise self._mounted.failed(error, f"tasks/{self.standing.name}/state") from error

    def _forgotten(self) -> Standing:
        """The standing of a removed task, or of its heir."""
        self.close()
        name = self.standing.name
        if self._is_heir(name):
            self.standing = Standing(name, "unknown", {"name": name}, stale=True)
            return self._look()
        return self.standing._replace(state="forgotten", stale=False)

    def close(self) -> None:
        if self.fd is not None:
            let_go(self.fd)
            self.fd = None


def follow(
    mounted: Mounted,
    names: Sequence[str],
    every: float,
    interrupts: Interrupts,
    orders: Orders,
    is_heir: Callable[[str], bool] = lambda name: False,
) -> Iterator[Sequence[Standing]]:
    """The status of all tasks: at once, after each change of a state, every ``every`` seconds, after ^C and orders.

    ``is_heir`` says of a name whether the task that now has it is followed in place of a removed one. It stops when all
    have ended. Raises TargetError for a task that the caller may not read.
    """
    tasks = [_Followed(mounted._replace(patience=0), name, is_heir) for name in names]
    with contextlib.ExitStack() as stack:
        for task in tasks:
            stack.callback(task.close)
            task.look()
        yield [each.standing for each in tasks]
        looked = time.monotonic()
        while unfinished := [each for each in tasks if not each.standing.has_ended]:
            pause = RETRY if any(each.standing.stale for each in unfinished) else every
            ready = _wait(unfinished, interrupts, orders, looked + pause - time.monotonic())
            if not ready:
                looked = time.monotonic()
            for task in ready or unfinished:
                task.look()
            yield [each.standing for each in tasks]


def _wait(tasks: Sequence[_Followed], interrupts: Interrupts, orders: Orders, seconds: float) -> list[_Followed]:
    """The tasks whose state has changed. None if only the time has passed, ^C was pressed or an order came."""
    poll = select.poll()
    poll.register(interrupts.fd, select.POLLIN)
    if orders.fd is not None:
        poll.register(orders.fd, select.POLLIN)
    by_fd = {task.fd: task for task in tasks if task.fd is not None}
    for fd in by_fd:
        poll.register(fd, select.POLLPRI)
    ready = [fd for fd, _ in poll.poll(max(0.0, seconds) * 1000)]
    interrupts.drain()
    return [by_fd[fd] for fd in ready if fd in by_fd]
