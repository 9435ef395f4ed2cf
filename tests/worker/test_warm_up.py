"""The warm-up of a worker that was forked in advance: a whole task, of which nothing is left."""

from __future__ import annotations

import os
import signal

import pytest

from ktaskfs.host.cgroups import GroupMounts, own_groups
from ktaskfs.host.kernel import Kernel
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.progress import Phase, Shape, read_snapshot
from ktaskfs.worker.warm_up import WarmUp
from tests.support.forked import run_forked

PAGE = os.sysconf("SC_PAGESIZE")


def warm(operation: str) -> dict[str, object]:
    """The possessions of a process after a warm-up by ``operation``, and the end of the task."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    kernel, cgroups = Kernel.open_read_only(), GroupMounts.open()
    warm_up = WarmUp.open()
    warm_up = warm_up._replace(request=warm_up.request._replace(operation=operation))
    groups, masks = own_groups(), (os.umask(0o22), os.umask(0o22))
    target, page = os.dup(warm_up.target), os.dup(warm_up.page)
    os.pwrite(target, b"x" * PAGE, 0)
    before = len(os.listdir("/proc/self/fd"))
    warm_up.run(find_operations(), kernel, cgroups)
    return {
        "phase": read_snapshot(page, Shape(1, 1)).phase,
        "cleared": os.pread(target, PAGE, 0) == bytes(PAGE),
        "closed": before - len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "pending": len(signal.sigpending()),
        "directory": os.getcwd(),
        "the same": own_groups() == groups and masks[1] == os.umask(0o22),
    }


@pytest.mark.parametrize(("operation", "phase"), [("clear", Phase.DONE), ("reserve", Phase.STARTING)])
def test_nothing_is_left_of_it(operation: str, phase: Phase) -> None:
    """Of one that is refused, either: ``reserve`` has no path."""
    assert run_forked(lambda: warm(operation)) == {
        "phase": phase,
        "cleared": phase is Phase.DONE,
        "closed": len(("target", "page")),
        "threads": 1,
        "pending": 0,
        "directory": "/",
        "the same": True,
    }
