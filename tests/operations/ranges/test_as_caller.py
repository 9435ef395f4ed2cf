"""Operations where they really run: in a process that has become an ordinary user, in a root without /proc."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import KtaskfsError
from tests.support.as_caller import MEMORY_LIMIT, NOBODY, as_nobody
from tests.support.memory_files import allocated, is_all
from tests.support.resident import own_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.runner import Place, Runner


def test_the_whole_job(runner: Runner, place: Place) -> None:
    length = 64 << 20

    def work() -> list[object]:
        before = own_memory(runner.kernel.read_proc("self/smaps_rollup"))
        grown = []
        for operation in ("fallocate", "clear"):
            plan = runner.prepare(operation, path="file", length=length)
            function = plan.control.thread_func
            grown.append(0)

            def chunk(start: int, end: int, function: Callable[[int, int], object] = function) -> None:
                function(start, end)
                now = own_memory(runner.kernel.read_proc("self/smaps_rollup"))
                grown[-1] = max(grown[-1], now - before)

            runner.work(plan, thread_func=chunk)
        return [os.path.exists("/proc"), *grown]

    proc, *grown = as_nobody(place.directory, work)
    path = place.directory / "file"
    assert not proc
    assert max(grown) < MEMORY_LIMIT // 2
    assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (NOBODY, 0o600)
    assert allocated(path) == length
    assert is_all(0, path, 0, length)


@pytest.mark.parametrize("undo", [0, 1])
def test_the_pools_are_seen_from_there(runner: Runner, place: Place, undo: int) -> None:
    def too_much() -> str:
        try:
            runner.prepare("fallocate", path="file", length=1 << 50, undo=undo)
        except KtaskfsError as error:
            return f"{error.errname} {error.message}"
        return ""

    found = as_nobody(place.directory, too_much)
    assert (found.split()[0], "pool" in found) == (("ENOMEM", True) if place.unit > 4096 else ("ENOSPC", False))
    assert os.listdir(place.directory) == []
