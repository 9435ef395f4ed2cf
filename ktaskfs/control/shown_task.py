"""A task in the mount: the state shared by all views."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ktaskfs.tasks.task import ACTIVE
from ktaskfs.vfs import Attributes, Change, WatchedChange

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ktaskfs.control.filesystem import Filesystem
    from ktaskfs.operations.base.operation import SpecWord
    from ktaskfs.operations.base.parameters import Parameter
    from ktaskfs.tasks.task import Task

VIEW_BITS: Final = 32
"""An inode number of a view is ``uid + 1`` above this many bits, and below them the number within the view: block 0
is for files outside of tasks, and each task has a block."""
LOCAL: Final = (1 << VIEW_BITS) - 1
OF_THE_SPEC: Final = frozenset({"name", "queue", "replace"})
"""Parameters without a file, which affect only the creation of a task."""
WATCHED: Final = "state"
"""The file of a task that inotify(7) reports. All views share its inode, so watchers in every view are notified.
Nobody can hold the lock of that inode, because the file is never written."""


@dataclass(frozen=True)
class TaskFiles:
    """Which files a task can have, worked out once for all tasks.

    numbers:    for each, in order of listing, what is added to the inode number of the directory.
    names:      the file by that number.
    parameters: by the name of the operation; by None, for a task without one, those of all operations.
    """

    numbers: Mapping[str, int]
    names: Mapping[int, str]
    parameters: Mapping[str | None, Mapping[str, Parameter]]

    @classmethod
    def of(cls, operations: Mapping[str, SpecWord], fixed: Iterable[str]) -> TaskFiles:
        """The files ``fixed`` of every task, and those declared by ``operations``."""
        parameters: dict[str | None, Mapping[str, Parameter]] = {
            name: {each.name: each for each in operation.declared if each.name not in OF_THE_SPEC}
            for name, operation in operations.items()
        }
        every = {name: parameter for each in parameters.values() for name, parameter in each.items()}
        names = dict(enumerate([*fixed, *every], 1))
        return cls({name: number for number, name in names.items()}, names, parameters | {None: every})

    @functools.cached_property
    def bits(self) -> int:
        """Bits for the inodes within a task; 0 is its directory."""
        return len(self.numbers).bit_length()


class ShownTask:
    """A task as all views show it.

    first:       the first of its inode numbers, without the view.
    watched:     the inode number of WATCHED.
    of_state:    notified when the task's state changes.
    of_progress: notified when anything of the task changes.
    """

    __slots__ = (
        "_watchable",
        "files",
        "first",
        "fs",
        "listed",
        "of_progress",
        "of_state",
        "readable",
        "task",
        "watched",
        "writable",
    )

    def __init__(self, first: int, task: Task, fs: Filesystem, files: TaskFiles) -> None:
        self.first = first
        self.watched = (fs.root.uid + 1) << VIEW_BITS | first + files.numbers[WATCHED]
        self._watchable = False
        self.task = task
        self.fs = fs
        self.files = files
        self.of_state: Change = Change()
        self.of_progress: Change = WatchedChange(self._units_done, fs.watcher)
        mode = 0o555 if fs.access.hidepid == 0 else 0o500  # whether others may list it
        self.listed = Attributes(mode, task.uid, task.gid, task.created_ns)
        self.readable = Attributes(0o440, task.uid, task.gid, task.created_ns)
        self.writable = Attributes(0o640, task.uid, task.gid, task.created_ns)

    @property
    def known_task(self) -> Task:
        """The task, for an open file of it. Raises TaskForgotten once the task was removed."""
        self.task.require_known()
        return self.task

    def changed(self) -> None:
        """The task's state changed, or it was removed."""
        self.of_state.notify()
        self.of_progress.notify()
        if self._watchable:
            path = f"users/{self.fs.root.uid}/tasks/{self.task.name}/{WATCHED}"
            if self.task.forgotten:
                self.fs.notices.discard(path)
            else:
                self.fs.notices.add(path)

    def watch(self) -> int:
        """``watched``. Somebody has looked it up, and may watch it from now on."""
        self._watchable = True
        return self.watched

    def _units_done(self) -> int | None:
        if self.task.state in ACTIVE:
            with contextlib.suppress(OSError):  # the state directory has failed: a read of the file will say so
                return self.task.snapshot().done
        return None

    def parameters(self) -> Mapping[str, Parameter]:
        """The parameters that currently are files."""
        operation = self.task.operation
        return self.files.parameters[None if operation is None else operation.name]
