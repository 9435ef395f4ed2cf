"""The children that look at the mount, at the end of a daemon whose mount is kept: they may wait for the next one."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

import trio

from ktaskfs.fuse.probe import FirstLook
from tests.support.poll import DEADLINE

if TYPE_CHECKING:
    import pytest


def test_a_daemon_that_ends_does_not_wait_for_a_child_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, released = threading.Event(), threading.Event()
    reap = os.waitpid

    def hangs(pid: int, options: int) -> tuple[int, int]:
        ended.wait(DEADLINE)
        found = reap(pid, options)
        released.set()
        return found

    monkeypatch.setattr(os, "waitpid", hangs)

    async def end() -> None:
        with contextlib.closing(FirstLook()) as look, trio.CancelScope() as scope:
            async with look:
                scope.cancel()

    trio.run(end)
    in_time = not released.is_set()
    ended.set()
    assert in_time
