"""The children that look at the mount, at the end of a daemon whose mount is kept: they may wait for the next one."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING

import trio

from ktaskfs.fuse import probe
from ktaskfs.fuse.probe import FirstLook
from tests.support.poll import DEADLINE

if TYPE_CHECKING:
    import pytest


def test_a_daemon_that_ends_does_not_wait_for_a_child_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    scope, ended, reaped = trio.CancelScope(), threading.Event(), threading.Event()
    reap = os.waitpid

    def hangs(pid: int, options: int) -> tuple[int, int]:
        trio.from_thread.run_sync(scope.cancel)
        ended.wait(DEADLINE)
        found = reap(pid, options)
        reaped.set()
        return found

    def start() -> tuple[int, socket.socket]:
        """Like ``fork_look``, whose fork needs a process with one thread."""
        return os.posix_spawn("/bin/sleep", ["sleep", "infinity"], os.environ), socket.socket()

    monkeypatch.setattr(os, "waitpid", hangs)
    monkeypatch.setattr(probe, "fork_look", start)

    async def end() -> None:
        with contextlib.closing(FirstLook()) as look, scope:
            async with look:
                pass

    trio.run(end)
    in_time = not reaped.is_set()
    ended.set()
    assert reaped.wait(DEADLINE)
    assert in_time
