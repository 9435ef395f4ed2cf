"""Lets another process touch files of the mount, so that inotify(7) reports their changes.

The daemon itself must not: a call into its own mount waits for its own answer, and for locks of others.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.errors import KtaskfsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from ktaskfs.vfs import Notices

    Start = Callable[[int, int], AbstractAsyncContextManager[int]]

TOGETHER: Final = 0.05
"""Seconds after a change in which further changes are combined: a short task changes three times."""
IDLE: Final = 10.0
"""Seconds without a change after which the child ends: its fork takes 9 ms of CPU time from the next task."""
PATHS_MAX: Final = 100
"""Paths in a message; names of tasks are short enough (``worker.touch.MESSAGE_MAX``)."""

log = logging.getLogger(__name__)


async def tell_watchers(root: int, notices: Notices, not_readers: set[int], start: Start) -> None:
    """Touch the files in ``notices`` until cancelled; ``root`` is a descriptor of the root of the mount.

    ``not_readers`` has the pid of the child while there is one: the daemon makes no text for it. ``start`` starts the
    child for ``root`` and the child's end of a socket, and ends it.
    """
    while True:
        await notices.some()
        try:
            await _with_child(root, notices, not_readers, start)
        except (OSError, KtaskfsError) as error:  # there is no descriptor left, no memory, or no process
            log.warning("inotify reports no changes: %s", error)
            notices.take()


async def _with_child(root: int, notices: Notices, not_readers: set[int], start: Start) -> None:
    """Let one child touch files until nothing has changed for some time. Raises OSError or KtaskfsError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with trio.socket.from_stdlib_socket(ours) as child, theirs:
        async with start(root, theirs.fileno()) as pid:
            theirs.close()
            not_readers.add(pid)
            try:
                await _serve(child, notices)
            finally:
                not_readers.discard(pid)


async def _serve(child: trio.socket.SocketType, notices: Notices) -> None:
    answered = False
    while await _something_soon(notices):
        await trio.sleep(TOGETHER)
        for paths in _parts(notices.take()):
            if await _touched(child, paths):
                answered = True
            elif answered:  # somebody has killed it: start another one
                for each in paths:
                    notices.add(each)
                return
            else:
                raise ConnectionResetError(errno.ECONNRESET, "the child that touches files ended")


async def _touched(child: trio.socket.SocketType, paths: Sequence[str]) -> bool:
    """Whether the child has touched ``paths``; if not, it has ended."""
    try:
        await child.send(b"\0".join(map(os.fsencode, paths)))
        return bool(await child.recv(1))
    except (BrokenPipeError, ConnectionResetError):
        return False


async def _something_soon(notices: Notices) -> bool:
    with trio.move_on_after(IDLE):
        await notices.some()
        return True
    return False


def _parts(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    return (paths[first : first + PATHS_MAX] for first in range(0, len(paths), PATHS_MAX))
