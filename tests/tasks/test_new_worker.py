"""New workers in a frozen control group, and in one whose limit kills them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from ktaskfs.errors import WorkerLost
from ktaskfs.host.cgroups import Group
from ktaskfs.tasks import new_worker
from ktaskfs.tasks.spec import parse_spec
from ktaskfs.tasks.task import State
from tests.support.cgroups import group, groups_of, mount_point
from tests.support.processes import child_called
from tests.tasks.house import OPERATIONS, House, ended, me, until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.tasks.launcher import ForkedWorker
    from ktaskfs.worker.protocol import ForkRequest

pytestmark = pytest.mark.usefixtures("root")

MEMORY_MAX = "memory.max" if mount_point("memory") == mount_point("") else "memory.limit_in_bytes"


async def test_a_frozen_worker_is_waited_for(house: House, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def idle(pid: int) -> int:
        monkeypatch.setattr(new_worker, "TIMEOUT", 0.05)  # the spawner may have taken longer to fork it
        looks.append(pid)
        return 0

    monkeypatch.setattr(new_worker, "cpu_time", idle)
    with group("") as where:
        spare = child_called(house.spawner().pid, "spare")
        (where / "cgroup.procs").write_text(str(spare.pid))
        (where / "cgroup.freeze").write_text("1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.run, f"fallocate path={memory}/file length=64K name=t")
            await until(lambda: len(looks) > 5, "it is given time again and again")
            assert house.table.require("t").state is State.STARTING
            monkeypatch.setattr(new_worker, "TIMEOUT", 60)
            (where / "cgroup.freeze").write_text("0")
        assert await ended(house.table.require("t")) is State.DONE


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
