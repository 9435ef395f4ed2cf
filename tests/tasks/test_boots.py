"""A state directory on a disk outlives a boot; what its records say of the machine does not."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from ktaskfs.host.files import read_file
from ktaskfs.tasks.task import State
from tests.support.processes import has_ended
from tests.support.tasks import change_texts
from tests.tasks.house import adopted, change_record, ended, leave_paused, me, open_house, until

if TYPE_CHECKING:
    from pathlib import Path

SIZE: Final = 1 << 20
EARLIER: Final = "8a8ffd4e-0000-0000-0000-000000000000"

pytestmark = pytest.mark.usefixtures("workers")


async def test_no_worker_of_an_earlier_boot_lives(statedir: Path, memory: Path) -> None:
    """The directory may be on a disk: then another process may have the same pid, and have begun as long after boot."""
    pid = await leave_paused(statedir, memory)
    (statedir / "lock").write_text(f"{EARLIER}\n")
    async with open_house(statedir) as house:
        task = await adopted(house, "t")
        assert (task.state, task.worker) == (State.INTERRUPTED, None)
        assert (statedir / "lock").read_bytes() == read_file("/proc/sys/kernel/random/boot_id")
    worker = psutil.Process(pid)
    assert not has_ended(worker)
    worker.kill()


async def test_nothing_that_was_done_in_an_earlier_boot_counts(statedir: Path, memory: Path) -> None:
    """It may have been only in the page cache. The task still shows it."""
    worker = psutil.Process(await leave_paused(statedir, memory))
    worker.kill()
    (statedir / "lock").write_text(f"{EARLIER}\n")
    change_record(statedir, 1, boot=EARLIER)
    async with open_house(statedir) as house:
        task = await adopted(house, "t")
        assert (task.state, task.done(task.snapshot())) == (State.INTERRUPTED, 4096)
    async with open_house(statedir) as house:  # another daemon of the same boot knows it, too
        task = await adopted(house, "t")
        change_texts(task, rate_max=None)
        await house.service.resume(task, me())
        assert await ended(task) is State.DONE
        assert (task.history.base, task.snapshot().done, task.total(task.snapshot())) == (0, SIZE, SIZE)
        assert house.record(task)["boot"] == house.state.boot


async def test_what_was_done_in_this_boot_counts(statedir: Path, memory: Path) -> None:
    os.kill(await leave_paused(statedir, memory), signal.SIGKILL)
    async with open_house(statedir) as house:
        task = await adopted(house, "t")
        assert await ended(task) is State.INTERRUPTED
        change_texts(task, rate_max=None)
        await house.service.resume(task, me())
        assert await ended(task) is State.DONE
        assert (task.history.base, task.snapshot().done) == (4096, SIZE - 4096)


async def test_what_came_behind_the_range_is_kept(statedir: Path, memory: Path) -> None:
    """All is done again, but in the range of the first start."""
    path = memory / "file"
    path.write_bytes(b"x" * SIZE)
    async with open_house(statedir) as house:
        task = await house.run_one(f"clear path={path} chunk=4096 rate_max=1 name=t")
        await until(lambda: task.snapshot().done > 0, "the first chunk")
        house.service.kill(task)
        assert await ended(task) is State.INTERRUPTED
    change_record(statedir, 1, boot=EARLIER)
    with path.open("ab") as file:
        file.write(b"y" * SIZE)
    async with open_house(statedir) as house:
        task = await adopted(house, "t")
        change_texts(task, rate_max=None)
        await house.service.resume(task, me())
        assert await ended(task) is State.DONE
        assert (task.history.base, task.snapshot().done) == (0, SIZE)
    assert path.read_bytes() == bytes(SIZE) + b"y" * SIZE
