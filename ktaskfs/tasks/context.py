"""Shared by the parts of the task service."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    import trio

    from ktaskfs.host.cgroups import GroupMounts
    from ktaskfs.operations.base.operation import SpecWord
    from ktaskfs.tasks.launcher import Launcher
    from ktaskfs.tasks.state_directory import StateDirectory
    from ktaskfs.tasks.table import TaskTable


class TaskContext(NamedTuple):
    """The tasks of one daemon, and the means to run them.

    table:      the tasks, and the tunables.
    launcher:   forks their workers.
    state:      keeps their records and pages.
    operations: what a task can do, by name.
    nursery:    for background work.
    cgroups:    the mounts of control groups.
    """

    table: TaskTable
    launcher: Launcher
    state: StateDirectory
    operations: Mapping[str, SpecWord]
    nursery: trio.Nursery
    cgroups: GroupMounts
