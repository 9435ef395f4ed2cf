"""Lets another process touch files of the mount, so that inotify(7) reports their changes.

The daemon itself must not: a call into its own mount waits for its own answer, and for locks of others.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import trio

from ktaskfs.fuse import touch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ktaskfs.vfs import Notices

TOGETHER: Final = 0.05
"""Seconds after a change in which further changes are combined: a short task changes three times."""
IDLE: Final = 2.0
"""Seconds without a change after which the child ends."""
FAREWELL: Final = 1.0
"""Seconds for the child to end by itself."""
LAST_FAREWELL: Final = 5.0
"""Seconds that the daemon waits at its own end for a killed child. A lock of the mount may hold it."""
PATHS_MAX: Final = 100
"""Paths in a message; names of tasks are short enough (``touch.MESSAGE_MAX``)."""

log = logging.getLogger(__name__)


async def tell_watchers(root: int, notices: Notices, touchers: set[int]) -> None:
    """Touch the files in ``notices`` until cancelled; ``root`` is a descriptor of the root of the mount.

    ``touchers`` has the pid of each child while it lives: the daemon makes no text for it.
    """
    async with trio.open_nursery() as children:
        while True:
            await notices.some()
            try:
                child, process = await _start_child(root)
            except OSError as error:  # there is no descriptor left, no memory, or no Python
                _give_up(notices, error)
                continue
            touchers.add(process.pid)
            try:
                with trio.socket.from_stdlib_socket(child) as connection:
                    await _feed(connection, notices)
            except OSError as error:
                _give_up(notices, error)
            finally:
                children.start_soon(_end, process, touchers)


def _give_up(notices: Notices, error: OSError) -> None:
    log.warning("inotify reports no changes: %s", error.strerror)
    notices.take()


async def _start_child(root: int) -> tuple[socket.socket, trio.Process]:
    """A child, and the daemon's end of its socket. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # The child imports only the standard library, so it starts in a third of the time.
    command = [sys.executable, "-I", "-S", touch.__file__, str(root)]
    try:
        with theirs:
            return ours, await trio.lowlevel.open_process(
                command, stdin=theirs, stdout=subprocess.DEVNULL, pass_fds=[root]
            )
    except BaseException:
        ours.close()
        raise


async def _feed(child: trio.socket.SocketType, notices: Notices) -> None:
    """Let one child touch files until nothing has changed for some time. Raises OSError."""
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


async def _end(process: trio.Process, touchers: set[int]) -> None:
    """Wait until a child whose socket is closed has ended, and kill it if it hangs in a lock of the mount.

    At the end of the daemon it may stay behind.
    """
    try:
        with trio.move_on_after(FAREWELL):
            await process.wait()
            return
        process.kill()
        await process.wait()
    finally:
        process.kill()
        with trio.move_on_after(LAST_FAREWELL, shield=True):
            await process.wait()
        touchers.discard(process.pid)


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
