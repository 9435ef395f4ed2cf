"""Observations of tasks while helpers are short."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ktaskfs.tasks import helper_watch
from tests.tasks.house import House, until

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.usefixtures("known_cpus")
async def test_what_was_observed_of_a_task_is_forgotten_when_all_have_what_they_want(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep ended tasks, with their results, and the next shortage would begin with it."""
    monkeypatch.setattr(helper_watch, "INTERVAL", 0.01)
    house.set("cpu_percent", 25)  # one helper
    tasks = {await house.run_one(f"fallocate path={memory}/{name} length=1M chunk=4096 rate_max=1") for name in "ab"}
    await until(lambda: set(house.table.thread_use._samples) == tasks, "both are observed")
    house.set("max_threads", 1)
    await until(lambda: not house.table.thread_use._samples, "nothing is kept")
