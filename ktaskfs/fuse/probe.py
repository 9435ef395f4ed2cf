"""Checks whether the mount answers, and pins the static names, in another process.

If a thread of the daemon did so and the answer never came, even SIGKILL could not end the daemon: the thread would wait
for an answer of its own process (fs/fuse/dev.c, request_wait_answer).
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import TYPE_CHECKING

import trio

from ktaskfs.errors import KtaskfsError
from ktaskfs.fuse.look import DESCRIPTORS_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence


class NoAnswer(KtaskfsError):
    """The mount does not answer (EIO)."""

    default_errno = errno.EIO


async def probe(mountpoint: str, file: str, names: Sequence[str] = ()) -> list[int]:
    """Have ``file`` of the mount read; returns descriptors that pin ``names``, or none if that is not permitted.

    The child is in our process group, on which an automount depends (autofs_oz_mode). Raises NoAnswer.
    """
    module = f"{__package__}.look"
    closed = ["-I"] if sys.flags.isolated else ["-P", "-s"]  # no module from the environment, as for the spawner
    pins: list[int] = []
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                command = [sys.executable, *closed, "-m", module, mountpoint, file, *names]
                done = await trio.run_process(
                    command, check=False, stdin=theirs, capture_stdout=True, capture_stderr=True, cwd="/"
                )
            await trio.lowlevel.checkpoint_if_cancelled()  # it may have answered just before it was unmounted
            pins = _received(ours)
    except OSError as error:  # there is no descriptor left, no memory, or no Python
        raise NoAnswer(f"cannot start a child to check the mount: {error.strerror}") from error
    if done.returncode:
        for each in pins:
            os.close(each)
        raise NoAnswer(done.stderr.decode(errors="replace").strip() or f"the child ended with {done.returncode}")
    return pins


def _received(connection: socket.socket) -> list[int]:
    """All descriptors that were sent before the other end was closed."""
    found: list[int] = []
    while True:
        data, more, _, _ = socket.recv_fds(connection, 1, DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return found
        found += more
