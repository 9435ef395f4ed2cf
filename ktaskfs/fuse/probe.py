"""Checks whether the mount answers, and pins the static names, in another process; ``probe_child`` has the reason."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final, Self

import trio

from ktaskfs.errors import KtaskfsError
from ktaskfs.fuse.probe_child import ANSWERS, DESCRIPTORS_MAX, MESSAGE_MAX, asking, fork_probe
from ktaskfs.user_threads import NoThread, in_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

READ: Final = "import sys; open(sys.argv[1], 'rb').read()"

log = logging.getLogger(__name__)


class NoAnswer(KtaskfsError):
    """The mount does not answer (EIO)."""

    default_errno = errno.EIO


class FirstProbe:
    """A child that probes the new mount once.

    ``async with`` kills it and waits for its end, unless cancelled: it may have a file of the mount open, and
    then wait in its exit for an answer that only the next daemon gives. ``close`` only makes it end.
    """

    def __init__(self) -> None:
        """Fork it from a process with one thread. Raises NoAnswer."""
        try:
            self.pid, self._sock = fork_probe()
            self._pidfd = os.pidfd_open(self.pid)
        except OSError as error:
            raise _no_child(error) from error
        self._sock.setblocking(False)

    def close(self) -> None:
        """Call it when the event loop has ended."""
        self._sock.close()
        os.close(self._pidfd)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        os.kill(self.pid, signal.SIGKILL)  # it may wait for an answer of the mount that never comes
        await trio.lowlevel.wait_readable(self._pidfd)
        os.waitpid(self.pid, 0)  # noqa: ASYNC222  it has ended

    async def answers(self, mountpoint: str, file: str, names: Sequence[str]) -> None:
        """Have ``file`` of the mount read, and then ``names`` opened. Raises NoAnswer."""
        try:
            self._sock.send(asking(mountpoint, file, names))
            said, _ = await self._next()
        except OSError as error:
            raise NoAnswer(f"the child that checks the mount: {error.strerror}") from error
        if said != ANSWERS:
            raise NoAnswer(said.decode(errors="replace") or "the child that checks the mount ended")

    async def pins(self) -> list[int]:
        """Descriptors that pin the names, or none if that is not permitted. Call it after ``answers``."""
        pins: list[int] = []
        try:
            while True:
                said, more = await self._next()
                pins += more
                if not more:
                    break
            if said:
                log.info("the names of the mount are not pinned: %s", said.decode(errors="replace"))
        except BaseException:
            for each in pins:
                os.close(each)
            raise
        return pins

    async def _next(self) -> tuple[bytes, list[int]]:
        """The next message and its descriptors; empty when the child has ended."""
        await trio.lowlevel.wait_readable(self._sock)
        try:
            said, fds, _, _ = socket.recv_fds(self._sock, MESSAGE_MAX, DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:  # it was killed before it read the request
            return b"", []
        return said, fds


async def probe(mountpoint: str, file: str) -> None:
    """Have ``file`` of the mount read by a new child, which is left behind if this is cancelled. Raises NoAnswer."""
    command = [sys.executable, "-I", "-S", "-c", READ, os.path.join(mountpoint, file)]

    def run() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, cwd="/")

    try:
        done = await in_thread(run)
    except OSError as error:  # there is no descriptor left, no memory, or no Python
        raise _no_child(error) from error
    except NoThread as error:
        raise NoAnswer(error.message) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").splitlines()
        raise NoAnswer(said[-1] if said else f"the child ended with {done.returncode}")


def _no_child(error: OSError) -> NoAnswer:
    return NoAnswer(f"cannot start a child to check the mount: {error.strerror}")
