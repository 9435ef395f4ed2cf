"""Has files of the mount touched by another process, so that inotify(7) tells of their changes.

The daemon itself must not: a call into its own mount waits for an answer that it owes, and for locks that others hold.
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
"""Seconds after a change in which further ones are told together with it: a short task changes three times."""
IDLE: Final = 2.0
"""Seconds without a change after which the child ends."""
FAREWELL: Final = 1.0
"""Seconds that the child has to end by itself, and then when it was killed. It may hang in a lock of the mount."""
PATHS_MAX: Final = 100
"""Paths in a message; names of tasks are short enough for that (``touch.MESSAGE_MAX``)."""

log = logging.getLogger(__name__)


async def tell_watchers(root: int, notices: Notices) -> None:
    """Have what is in ``notices`` touched until cancelled; ``root`` is a descriptor of the root of the mount."""
    while True:
        await notices.some()
        try:
            await _with_child(root, notices)
        except OSError as error:  # there is no descriptor left, no memory, or no Python
            log.warning("inotify reports no changes: %s", error.strerror)
            notices.take()


async def _with_child(root: int, notices: Notices) -> None:
    """Have one child touch files until nothing has changed for some time. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with trio.socket.from_stdlib_socket(ours) as child:
        with theirs:
            # Only what the standard library itself needs is imported: it starts in a third of the time.
            command = [sys.executable, "-I", "-S", touch.__file__, str(root)]
            null = subprocess.DEVNULL
            process = await trio.lowlevel.open_process(command, stdin=theirs, stdout=null, pass_fds=[root])
        answered = False
        try:
            while await _something_soon(notices):
                await trio.sleep(TOGETHER)
                for paths in _parts(notices.take()):
                    if await _touched(child, paths):
                        answered = True
                    elif answered:  # somebody has killed it: another one does it
                        for each in paths:
                            notices.add(each)
                        return
                    else:
                        raise ConnectionResetError(errno.ECONNRESET, "the child that touches files ended")
        finally:
            for end in (child.close, process.kill):
                end()
                with trio.move_on_after(FAREWELL, shield=True) as patience:
                    await process.wait()
                if not patience.cancelled_caught:
                    break


async def _touched(child: trio.socket.SocketType, paths: Sequence[str]) -> bool:
    """Whether the child has touched ``paths``. It has ended otherwise."""
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
