"""``tasks/``: a directory for each task, and the file that creates them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ktaskfs.control.commands import CommandFile, Commands
from ktaskfs.control.privilege import capabilities_of, require_power_over
from ktaskfs.control.task_directory import TaskDirectory, TaskFiles
from ktaskfs.errors import KtaskfsError
from ktaskfs.tasks.task import ACTIVE
from ktaskfs.vfs import Attributes, Caller, Directory, Inode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ktaskfs.control.filesystem import Filesystem
    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.tasks.task import Task

USAGE: Final = """\
One job spec a line: OPERATION key=value ..., or {"op": "OPERATION", "key": "value", ...}. Each creates a task and
starts it. The operations and what they take: ../operations/*/parameters. "cancel" cancels all of your tasks.
  echo 'fallocate path=/dev/hugepages/vm0 length=64G name=vm0' > control
  cat vm0/wait
"""
CANCEL: Final = "cancel"


class TasksDirectory(Directory):
    """Follows the table of tasks. For a user who may not know of a task, its name does not exist."""

    __slots__ = ("_control", "_directories", "_files", "_fs", "_service")

    def __init__(self, ino: int, fs: Filesystem) -> None:
        access = fs.access
        control = Attributes(access.mode, access.uid, access.gid, fs.root.time_ns)
        # Who may write control may mkdir. Because of the sticky bit only its owner may remove a task's directory.
        super().__init__(ino, replace(control, mode=0o1555 | access.mode & 0o222))
        self._fs = fs
        self._service = fs.service
        self._files = TaskFiles.of(fs.service.operations)
        self._directories: dict[Task, TaskDirectory] = {}
        commands = Commands("tasks/control", lambda caller: USAGE, self._command)
        self._control = CommandFile(fs.numbers.take(), control, commands, fs.log, fs.limits)
        fs.service.table.observers.append(self._changed)

    def _changed(self, task: Task) -> None:
        directory = self._directories.get(task)
        if directory is not None:
            directory.changed()
            if task not in self._service.table:
                del self._directories[task]
                self._fs.invalidations.add(self, task.name)

    def _directory(self, task: Task) -> TaskDirectory:
        directory = self._directories.get(task)
        if directory is None:
            ino = self._fs.numbers.take(self._files.inodes)
            directory = self._directories[task] = TaskDirectory(ino, task, self._fs, self._files)
        return directory

    def lookup(self, name: str, caller: Caller) -> Inode | None:
        if name == "control":
            return self._control
        task = self._service.table.get(name)
        known = task is not None and self._fs.access.may_know(caller.uid, task.uid)
        return self._directory(task) if task is not None and known else None

    def entries(self, caller: Caller) -> Iterable[tuple[str, Inode]]:
        tasks = [task for task in self._service.table if self._fs.access.may_know(caller.uid, task.uid)]
        return [("control", self._control), *((task.name, self._directory(task)) for task in tasks)]

    async def mkdir(self, name: str, caller: Caller) -> Directory:
        try:
            _, rights = capabilities_of(caller)
            task = self._service.create_empty(name, caller.uid, caller.gid, rights)
        except KtaskfsError as error:
            self._fs.log.refused("tasks", caller, f"mkdir {name}", error)
            raise
        self._fs.log.succeeded(caller)
        return self._directory(task)

    async def rmdir(self, name: str, caller: Caller) -> None:
        try:
            task = self._service.table.require(name)
            if caller.uid != task.uid:
                effective, _ = capabilities_of(caller)
                require_power_over(caller.uid, effective, task.uid, f"remove task {name}")
            self._service.forget(task)
        except KtaskfsError as error:
            self._fs.log.refused("tasks", caller, f"rmdir {name}", error)
            raise
        self._fs.log.succeeded(caller)

    async def _command(self, caller: CallerProcess, text: str) -> str | None:
        """Specs, one a line, all or none; or ``cancel``."""
        if text == CANCEL:
            caller.close()
            for task in self._service.table.of_user(caller.identity.uid):
                if task.state in ACTIVE:
                    self._service.cancel(task)
            return None
        try:
            specs = await self._service.specs.read(caller.identity.uid, text)
        except BaseException:
            caller.close()
            raise
        tasks = await self._service.run_specs(caller, specs)
        return "".join(f"{task.name}\n" for task in tasks)
