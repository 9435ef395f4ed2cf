"""Takes helper threads from tasks that do not use them, while other tasks wait for helpers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from ktaskfs.tasks.table import TaskTable

INTERVAL: Final = 1.0
"""Seconds between two checks."""


class HelperWatch:
    """Checks each running task of ``table`` once a second while a task has fewer threads than it wants."""

    def __init__(self, table: TaskTable, nursery: trio.Nursery) -> None:
        self._table = table
        self._nursery = nursery
        self._runs = False
        table.shortage_observers.append(self._begin)

    def _begin(self) -> None:
        if not self._runs:
            self._runs = True
            self._nursery.start_soon(self._run)

    async def _run(self) -> None:
        try:
            while self._table.short_of_threads:
                await trio.sleep(INTERVAL)
                tasks = self._table.running()
                for task in tasks:
                    await trio.lowlevel.checkpoint()
                    self._table.thread_use.look(task)
                self._table.thread_use.forget_all_but(tasks)
                self._table.rebalance()
        finally:
            self._runs = False
            self._table.thread_use.forget_all_but(())  # the next shortage begins with new ones
