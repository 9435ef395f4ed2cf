"""The children that probe the mount, at the end of a daemon whose mount is kept: they may wait for the next one."""

from __future__ import annotations

import contextlib
import os
import socket

import psutil
import pytest
import trio

from ktaskfs.fuse import probe
from ktaskfs.fuse.probe import FirstProbe, NoAnswer


def test_a_daemon_that_ends_does_not_wait_for_a_child_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def start() -> tuple[int, socket.socket]:
        """Like ``fork_probe``, whose fork needs a process with one thread."""
        return os.posix_spawn("/bin/sleep", ["sleep", "infinity"], os.environ), socket.socket()

    monkeypatch.setattr(probe, "fork_probe", start)
    kill = os.kill

    async def end() -> None:
        with contextlib.closing(FirstProbe()) as probing:
            with trio.CancelScope() as scope:
                async with probing:
                    monkeypatch.setattr(os, "kill", lambda pid, number: scope.cancel())
            assert scope.cancelled_caught
            assert psutil.pid_exists(probing.pid)
            monkeypatch.setattr(os, "kill", kill)
            async with probing:
                pass
            assert not psutil.pid_exists(probing.pid)

    trio.run(end)


async def test_without_a_thread_the_mount_has_not_answered(no_threads: None) -> None:
    with pytest.raises(NoAnswer, match="thread"):
        await probe.probe("/proc", "version")
