"""The child that touches files for inotify(7)."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
import trio

from ktaskfs.fuse import toucher
from ktaskfs.vfs import Notices
from tests.support.processes import has_ended

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def root(area: Path) -> Iterator[int]:
    (area / "file").touch()
    fd = os.open(area, os.O_PATH)
    yield fd
    os.close(fd)


class Touchers(set[int]):
    """The living children; ``some`` and ``none`` are set when there was one, and when it has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.some, self.none = trio.Event(), trio.Event()

    def add(self, pid: int, /) -> None:
        super().add(pid)
        self.some.set()

    def discard(self, pid: object, /) -> None:
        super().discard(pid)
        self.none.set()


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("over", [False, True], ids=["it goes on", "the daemon ends"])
async def test_a_child_that_ends_late_is_reaped(
    root: int, monkeypatch: pytest.MonkeyPatch, hangs: bool, over: bool
) -> None:
    """Nobody waits for it, but it neither stays as a zombie nor warns of that."""
    lost: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    monkeypatch.setattr(toucher, "FAREWELL", 0)
    monkeypatch.setattr(toucher, "IDLE", 60 if over else 0)
    notices, touchers = Notices(), Touchers()
    notices.add("file")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(toucher.tell_watchers, root, notices, touchers)
        await touchers.some.wait()
        (child,) = map(psutil.Process, touchers)
        if hangs:
            child.suspend()
        if not over:
            await touchers.none.wait()
        nursery.cancel_scope.cancel()
    assert has_ended(child)
    assert touchers == set()
    gc.collect()
    assert lost == []
