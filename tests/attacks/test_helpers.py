"""Tasks that hold on to helper threads which they cannot use, or that are many."""

from __future__ import annotations

import functools
import os
import signal
from typing import TYPE_CHECKING, Final

import pytest

from ktaskfs.tasks.spec import parse_spec
from ktaskfs.tasks.thread_sharing import helper_limit
from ktaskfs.tasks.thread_use import ThreadUse
from tests.support.processes import halt
from tests.tasks.conftest import house, known_cpus, memory, workers
from tests.tasks.house import CPUS, OPERATIONS, me, until

if TYPE_CHECKING:
    from pathlib import Path

    from ktaskfs.tasks.task import Task
    from tests.support.users import User
    from tests.tasks.house import House

__all__ = ["house", "known_cpus", "memory", "workers"]

pytestmark = pytest.mark.usefixtures("known_cpus")

PERCENT: Final = 100 // len(CPUS)
"""The part of the CPUs that makes one helper."""
WANTED: Final = 1 + helper_limit(len(CPUS), PERCENT)
"""Threads of a task that has all helpers."""


def set_rate(house: House, task: Task, text: str) -> None:
    """The effect of a write to ``rate_max``."""
    assert task.operation is not None
    task.set_text(next(each for each in task.operation.declared if each.name == "rate_max"), text)
    house.service.set_live(task)


def has_begun(task: Task) -> bool:
    """Whether a first chunk is done."""
    return task.snapshot().done > 0


async def greedy_and_hungry(house: House, memory: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Task, Task]:
    """A task that waits for its rate limit and has all helpers, and a second one that has none.

    Nobody looks at them until both have begun, even if a worker stalls before its first chunk.
    """
    house.set("max_threads", len(CPUS))
    house.set("cpu_percent", PERCENT)
    tasks = []
    with monkeypatch.context() as unseen:
        unseen.setattr(ThreadUse, "look", lambda _use, _task: None)
        for name in ("greedy", "hungry"):
            task = await house.run_one(f"fallocate path={memory}/{name} length=1M chunk=4096 rate_max=1")
            await until(functools.partial(has_begun, task), "the first chunk")
            tasks.append(task)
    greedy, hungry = tasks
    assert greedy.requests.threads > hungry.requests.threads == 1
    return greedy, hungry


async def test_a_task_that_waits_for_its_rate_gives_its_helpers_back(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy, hungry = await greedy_and_hungry(house, memory, monkeypatch)
    await until(lambda: greedy.requests.threads == 1, "it keeps its first thread only")
    set_rate(house, hungry, "max")
    assert hungry.requests.threads == WANTED
    await until(lambda: hungry.worker is None, "the other task has all helpers and ends")
    set_rate(house, greedy, "2")
    assert greedy.requests.threads == WANTED


async def test_a_task_that_is_stopped_by_a_signal_gives_its_helpers_back(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy, hungry = await greedy_and_hungry(house, memory, monkeypatch)
    assert greedy.worker is not None
    halt(greedy.worker.pid)  # before anybody looks at it
    set_rate(house, greedy, "max")
    assert greedy.requests.threads == WANTED
    await until(lambda: (greedy.requests.threads, hungry.requests.threads) == (1, WANTED), "the helpers go over")
    os.kill(greedy.worker.pid, signal.SIGCONT)
    await until(lambda: greedy.worker is None, "the end")


async def run_as(house: House, user: User, path: Path) -> Task:
    """A task of ``user`` that goes on for ever."""
    caller = me()
    identity = caller.identity._replace(uid=user.uid, gid=user.gid, groups=(), effective=0, permitted=0, bounding=0)
    caller = caller._replace(identity=identity)
    spec = parse_spec(f"fallocate path={path} length=1M chunk=4096 rate_max=1", OPERATIONS)
    (task,) = await house.service.run_specs(caller, [spec])
    return task


async def test_many_tasks_of_one_user_leave_another_users_task_its_share(
    house: House, memory: Path, attacker: User, victim: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ktaskfs.tasks.helper_watch.INTERVAL", 1e6)  # none gives helpers back
    os.chmod(memory, 0o1777)
    house.set("max_threads", len(CPUS))
    house.set("cpu_percent", 100)
    many = [await run_as(house, attacker, memory / f"many{number}") for number in range(3)]
    one = await run_as(house, victim, memory / "one")
    helpers = sum(task.requests.threads - 1 for task in many)
    assert abs(helpers - (one.requests.threads - 1)) <= 1
