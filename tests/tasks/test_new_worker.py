"""New workers in a frozen control group, and in one whose limit kills them."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest
import trio

from ktaskfs.errors import WorkerLost
from ktaskfs.host.cgroups import Group
from ktaskfs.tasks import new_worker
from ktaskfs.tasks.lifecycle import StartCancelled
from ktaskfs.tasks.spec import parse_spec
from ktaskfs.tasks.task import State
from tests.support.cgroups import group, groups_of, mount_point
from tests.support.processes import child_called
from tests.tasks.house import OPERATIONS, House, ended, me, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.tasks.launcher import ForkedWorker
    from ktaskfs.worker.protocol import ForkRequest

pytestmark = pytest.mark.usefixtures("root")

MEMORY_MAX = "memory.max" if mount_point("memory") == mount_point("") else "memory.limit_in_bytes"


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes of which the daemon read the CPU time, which never grows; TIMEOUT is short after the first."""
    read: list[int] = []

    def idle(pid: int) -> int:
        monkeypatch.setattr(new_worker, "TIMEOUT", 0.05)  # the spawner may have taken longer to fork it
        read.append(pid)
        return 0

    monkeypatch.setattr(new_worker, "cpu_time", idle)
    return read


async def test_a_frozen_worker_is_waited_for(
    house: House, memory: Path, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with frozen_spare(house) as thaw:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.run, f"fallocate path={memory}/file length=64K name=t")
            await until(lambda: len(looks) > 5, "it is given time again and again")
            assert house.table.require("t").state is State.STARTING
            monkeypatch.setattr(new_worker, "TIMEOUT", 60)
            thaw()
        assert await ended(house.table.require("t")) is State.DONE


async def test_a_frozen_worker_of_a_cancelled_start_can_undo_after_the_thaw(
    house: House, memory: Path, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses: list[int | None] = []
    exit_status = house.launcher.exit_status

    async def noted(ticket: int) -> int | None:
        statuses.append(await exit_status(ticket))
        return statuses[-1]

    async def run() -> None:
        with contextlib.suppress(StartCancelled):  # or the start was already answered
            await house.run(f"fallocate path={memory}/file length=64K name=t")

    monkeypatch.setattr(house.launcher, "exit_status", noted)
    with frozen_spare(house) as thaw:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await until(lambda: bool(looks), "it is frozen")
            house.service.cancel(house.table.require("t"))
            before = len(looks)
            await until(lambda: len(looks) > before + 3, "it is given time again and again")
            thaw()
        await until(lambda: bool(statuses), "it has ended")
    assert statuses[0] is not None
    assert os.WIFEXITED(statuses[0])


async def test_a_limit_on_memory_that_kills_a_worker_at_once_is_named(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = house.launcher.fork

    async def fork_and_wait(request: ForkRequest, fds: Sequence[int], lost: Callable[[int], object]) -> ForkedWorker:
        forked = await fork(request, fds, lost)
        await trio.lowlevel.wait_readable(forked.pidfd)
        return forked

    monkeypatch.setattr(house.launcher, "fork", fork_and_wait)
    with group("memory", {MEMORY_MAX: "64K"}) as where:
        caller = in_group(me(), where)
        with pytest.raises(WorkerLost, match=f"killed by the memory limit of your control group .*{where.name}"):
            await house.service.run_specs(caller, [parse_spec(f"fallocate path={memory}/f length=64K", OPERATIONS)])


@contextlib.contextmanager
def frozen_spare(house: House) -> Iterator[Callable[[], object]]:
    """The spare worker in a frozen group; gives what thaws it."""
    with group("") as where:
        (where / "cgroup.procs").write_text(str(child_called(house.spawner().pid, "spare").pid))
        (where / "cgroup.freeze").write_text("1")
        yield lambda: (where / "cgroup.freeze").write_text("0")


def in_group(caller: CallerProcess, where: Path) -> CallerProcess:
    """``caller`` as if its process were in the group ``where``, too, which is below its own."""
    named = [Group(*line.split(":", 2)[1:]) for line in groups_of("self")]
    controller = "memory" if any("memory" in each.controllers.split(",") for each in named) else ""
    groups = [
        each._replace(path=f"{each.path.rstrip('/')}/{where.name}")
        if controller in each.controllers.split(",")
        else each
        for each in named
    ]
    return caller._replace(identity=caller.identity._replace(cgroups=tuple(groups)))
