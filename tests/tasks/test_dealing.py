"""Threads are dealt among running tasks only when one comes or goes: that visits each of them."""

from __future__ import annotations

from typing import Any

import pytest

from ktaskfs.tasks.table import TaskTable
from ktaskfs.tasks.task import Origin, State, Task
from ktaskfs.tasks.thread_sharing import deal_threads
from ktaskfs.tasks.tunables import Settings


@pytest.fixture
def dealt(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tasks at each time that threads are dealt."""
    found: list[int] = []

    def noting(claims: Any, *others: Any) -> Any:
        found.append(len(claims))
        return deal_threads(claims, *others)

    monkeypatch.setattr("ktaskfs.tasks.table.deal_threads", noting)
    return found


def test_threads_are_dealt_once_for_many_and_not_for_tasks_without(dealt: list[int]) -> None:
    table = TaskTable(Settings({}))
    tasks = [Task(Origin.now(number, f"t{number}", 1, 1)) for number in range(6)]
    for task in tasks:
        table.add(task)
    table.move_all(tasks[:4], State.QUEUED)
    table.move_all(tasks[:2], State.CANCELLED)
    table.drop(*tasks[:2])
    assert dealt == []
    table.move_all(tasks[2:], State.STARTING)
    table.move_all(tasks[2:], State.RUNNING)
    assert dealt == [4, 4]
    table.move(tasks[2], State.DONE)
    table.drop(tasks[2])
    table.drop(*tasks[3:])
    assert dealt == [4, 4, 3, 0]
