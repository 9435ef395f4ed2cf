"""All of a daemon but its mount: table, state directory, launcher and a real spawner."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import trio

from ktaskfs.host.cgroups import GroupMounts
from ktaskfs.host.credentials import CallerProcess, read_caller
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.tasks.context import TaskContext
from ktaskfs.tasks.launcher import Launcher
from ktaskfs.tasks.private_directory import PrivateDirectory
from ktaskfs.tasks.service import TaskService
from ktaskfs.tasks.spec import parse_spec
from ktaskfs.tasks.state_directory import StateDirectory
from ktaskfs.tasks.table import TaskTable
from ktaskfs.tasks.task import ENDED, State, Task
from ktaskfs.tasks.tunables import TUNABLES, Settings
from tests.support.poll import DEADLINE
from tests.support.processes import child_called

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import psutil


OPERATIONS = find_operations()
CPUS = (0, 1, 2, 3)
"""The CPUs of the fixture ``known_cpus``."""


def me() -> CallerProcess:
    """This process as a caller."""
    return read_caller(os.getpid(), os.geteuid(), os.getegid())


def open_files() -> int:
    """Descriptors that this process has open."""
    return len(os.listdir("/proc/self/fd"))


async def until(condition: Callable[[], bool], what: str) -> None:
    """Let others run until ``condition()`` is true."""
    with trio.move_on_after(DEADLINE):
        while True:
            if condition():
                return
            await trio.sleep(0.002)  # the awaited events happen in other processes
    raise AssertionError(f"not within {DEADLINE:g} s: {what}")


async def ended(task: Task) -> State:
    """The state in which ``task`` ends."""
    await until(lambda: task.state in ENDED, f"the end of {task}")
    return task.state


def kill_quietly(pid: int) -> None:
    """Kill a child of this process, and return when it is dead, before any other trio task has run."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def read_json(path: str) -> dict[str, Any]:
    """The object in a file."""
    with open(path, "rb") as file:
        value: dict[str, Any] = json.load(file)
    return value


class House:
    """One daemon's life with the tasks in ``statedir``; made by ``open_house``."""

    def __init__(self, nursery: trio.Nursery, statedir: Path, tunables: dict[str, int]) -> None:
        self.nursery = nursery
        self.settings = Settings(tunables)
        self.table = TaskTable(self.settings)
        self.state = StateDirectory(PrivateDirectory(str(statedir)))
        self.launcher = Launcher(nursery)
        self.cgroups = GroupMounts.open()
        context = TaskContext(self.table, self.launcher, self.state, OPERATIONS, nursery, self.cgroups)
        self.service = TaskService(context)

    async def run(self, *lines: str) -> list[Task]:
        """The effect of a write of ``lines`` to ``tasks/control``."""
        return await self.service.run_specs(me(), [parse_spec(line, OPERATIONS) for line in lines])

    async def run_one(self, line: str) -> Task:
        """The one task of ``line``."""
        (task,) = await self.run(line)
        return task

    async def paused(self, path: Path, *, length: int = 1 << 20, more: str = "") -> Task:
        """A task that has a worker, and has done nothing yet beyond a first chunk of 4 KiB."""
        task = await self.run_one(f"fallocate path={path} length={length} chunk=4096 rate_max=1 {more}")
        await until(lambda: task.snapshot().done == 4096, "the first chunk")
        self.service.pause(task)
        return task

    def set(self, name: str, value: object) -> None:
        """The effect of a write to ``debug/ktask_NAME``."""
        self.settings.set(next(each for each in TUNABLES if each.name == name), str(value))

    def spawner(self) -> psutil.Process:
        """The process of the spawner."""
        return child_called(os.getpid(), "spawner")

    async def kill_spawner(self) -> None:
        """Kill it and wait until it is reaped: then its descriptors are closed, too."""
        spawner = self.spawner()
        spawner.kill()
        await until(lambda: not spawner.is_running(), "the spawner is reaped")

    def files(self) -> list[str]:
        """The files in the state directory, except the lock."""
        return sorted(set(os.listdir(self.state.path)) - {"lock"})

    def record(self, task: Task) -> dict[str, Any]:
        """The record of ``task``, as it is on disk."""
        return read_json(os.path.join(self.state.path, f"{task.number:08d}.json"))

    def die(self) -> None:
        """Close all that the kernel closes at the end of a daemon; ``open_house`` owns the nursery and the spawner."""
        self.cgroups.close()
        for task in self.table:
            if task.worker is not None:
                task.worker.close()
        self.state.close()


def line(path: Path, more: str = "queue=1") -> str:
    """A spec for a new file, which gives its task the name of the file."""
    return f"fallocate path={path} length=64K name={path.name} {more}"


async def busy(house: House, memory: Path, limit: int = 1) -> Task:
    """A task at work that takes the only place."""
    house.set("max_tasks", limit)
    return await house.paused(memory / "busy", more="name=busy")


async def stop_spare(house: House) -> psutil.Process:
    """Have the next task get a worker that is stopped, and so hangs before it does anything."""
    spare = child_called(house.spawner().pid, "spare")
    spare.suspend()
    return spare


@contextlib.asynccontextmanager
async def open_house(statedir: Path, **tunables: int) -> AsyncIterator[House]:
    """A daemon that ends as if killed: its spawner ends with it, and its workers go on."""
    house = None
    try:
        async with trio.open_nursery() as nursery:
            house = House(nursery, statedir, tunables)
            house.launcher.start()
            yield house
            nursery.cancel_scope.cancel()
    finally:
        if house is not None:
            house.die()


async def adopted(house: House, name: str) -> Task:
    """The task of that name, after taking over."""
    await house.service.adopt()
    return house.table.require(name)


def change_record(statedir: Path, number: int, **changes: object) -> None:
    """Give some fields of the record of a task other values."""
    path = statedir / f"{number:08d}.json"
    path.write_text(json.dumps(read_json(str(path)) | changes))


async def leave_paused(statedir: Path, memory: Path) -> int:
    """A daemon that dies beside a paused task ``t``; returns the worker's pid."""
    async with open_house(statedir) as house:
        task = await house.paused(memory / "file", more="name=t")
        assert task.worker is not None
        return task.worker.pid
