"""``tasks/``: a directory for each task, and the file that creates them."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Final

from ktaskfs.control.commands import CommandFile, Commands
from ktaskfs.control.privilege import require_power_over
from ktaskfs.control.shown_task import LOCAL, ShownTask
from ktaskfs.control.task_directory import TaskDirectory, task_files
from ktaskfs.vfs import Attributes, Caller, Directory, Inode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.control.filesystem import Filesystem
    from ktaskfs.control.task_list import TaskList
    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.tasks.service import TaskService
    from ktaskfs.tasks.task import Task

USAGE: Final = """\
One job spec a line: OPERATION key=value ..., or {"op": "OPERATION", "key": "value", ...}. Each creates a task and
starts it. operations/*/parameters lists operations and parameters. "cancel" cancels all of your tasks.
  echo 'fallocate path=/dev/hugepages/vm0 length=64G name=vm0' > control
  cat vm0/wait
"""
CANCEL: Final = "cancel"
TASKS: Final = 3
CONTROL: Final = 4


class ShownTasks:
    """The tasks of the table in all views. Each has a block of inode numbers, the same in every view."""

    def __init__(self, fs: Filesystem, listed: TaskList) -> None:
        self.listed = listed
        self.files = task_files(fs.service.operations)
        self._fs = fs
        self._bits = self.files.bits
        self._blocks = LOCAL + 1 >> self._bits
        # A process in a directory of an earlier daemon must not get another task's files by number, so each daemon
        # begins at another number, some thousand further for each second.
        self._next = itertools.count(time.clock_gettime_ns(time.CLOCK_BOOTTIME) >> 20)
        self._by_block: dict[int, ShownTask] = {}
        self._by_task: dict[Task, ShownTask] = {}
        fs.service.table.observers.append(self._changed)

    def _changed(self, task: Task) -> None:
        if task.forgotten:
            if (dropped := self._by_task.pop(task, None)) is not None:
                del self._by_block[dropped.first >> self._bits]
                dropped.changed()
        elif task in self._fs.service.table:  # else it is set aside
            self.of(task).changed()

    def of(self, task: Task) -> ShownTask:
        """The shown task of ``task``, which is in the table."""
        shown = self._by_task.get(task)
        if shown is None:
            numbers = (each % self._blocks for each in self._next)
            block = next(each for each in numbers if each and each not in self._by_block)
            shown = ShownTask(block << self._bits, task, self._fs, self.files)
            self._by_block[block] = self._by_task[task] = shown
        return shown

    def holding(self, ino: int) -> ShownTask | None:
        """The task whose block contains the inode number, in any view."""
        return self._by_block.get((ino & LOCAL) >> self._bits)

    def sharing(self, ino: int) -> ShownTask | None:
        """The task whose shared inode has this number."""
        shown = self.holding(ino)
        return shown if shown is not None and ino == shown.watched else None


class TasksDirectory(Directory):
    """The tasks visible to the user of one view, and the file that creates tasks."""

    __slots__ = ("_fs", "_tasks", "_uid", "_view", "control")

    def __init__(self, view: int, uid: int, fs: Filesystem, tasks: ShownTasks) -> None:
        """``view`` is the base of the view's inode numbers."""
        access = fs.access
        # Users who may write control may mkdir. Because of the sticky bit only its owner may remove a task's directory.
        mode = 0o1555 | access.mode & 0o222
        super().__init__(view | TASKS, Attributes(mode, access.uid, access.gid, fs.root.time_ns))
        self._fs = fs
        self._tasks = tasks
        self._uid = uid
        self._view = view
        self.control = self._control()

    @property
    def _service(self) -> TaskService:
        return self._fs.service

    def _control(self) -> CommandFile:
        access = self._fs.access
        attributes = Attributes(access.mode, access.uid, access.gid, self._fs.root.time_ns)
        commands = Commands("tasks/control", lambda caller: USAGE, self._command)
        fs = self._fs
        return CommandFile(self._view | CONTROL, attributes, commands, log=fs.log, limits=fs.limits, callers=fs.callers)

    def _directory(self, shown: ShownTask) -> TaskDirectory:
        return TaskDirectory(self._view | shown.first, shown)

    def _may_know(self, task: Task) -> bool:
        return self._fs.access.may_know(self._uid, task.uid)

    def lookup(self, name: str, caller: Caller) -> Inode | None:
        if name == "control":
            return self.control
        task = self._service.table.get(name)
        return None if task is None or not self._may_know(task) else self._directory(self._tasks.of(task))

    def names(self, caller: Caller) -> Sequence[str]:
        return ["control", *(task.name for task in self._service.table if self._may_know(task))]

    async def mkdir(self, name: str, caller: Caller) -> Directory:
        with self._fs.log.refusals("tasks", caller, f"mkdir {name}"):
            _, rights = await self._fs.callers.capabilities(caller)
            task = self._service.create_empty(name, caller.uid, caller.gid, rights)
        self._fs.log.succeeded(caller)
        return self._directory(self._tasks.of(task))

    async def rmdir(self, name: str, caller: Caller) -> None:
        with self._fs.log.refusals("tasks", caller, f"rmdir {name}"):
            task = self._service.table.require(name)
            if caller.uid != task.uid:
                effective, _ = await self._fs.callers.capabilities(caller)
                task = self._service.table.require(name)  # its owner may have removed it meanwhile
                require_power_over(caller.uid, effective, task.uid, f"remove task {name}")
            self._service.forget(task)
        self._fs.log.succeeded(caller)

    async def _command(self, caller: CallerProcess, text: str) -> str | None:
        """Specs, one per line, all or none; or ``cancel``."""
        if text == CANCEL:
            caller.close()
            await self._service.cancel_all(caller.identity.uid)
            return None
        try:
            specs = await self._service.specs.read(caller.identity.uid, text)
        except BaseException:
            caller.close()
            raise
        tasks = await self._service.run_specs(caller, specs)
        return "".join(f"{task.name}\n" for task in tasks)
