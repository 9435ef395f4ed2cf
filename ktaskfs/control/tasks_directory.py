"""``tasks/``: a directory for each task, and the file that creates them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ktaskfs.control.commands import CommandFile
from ktaskfs.control.task_directory import Layout, Surroundings, TaskDirectory
from ktaskfs.errors import KtaskfsError, NotPermitted, SpecError
from ktaskfs.tasks.spec import parse_spec
from ktaskfs.tasks.task import ACTIVE
from ktaskfs.vfs import Attributes, Caller, Directory, Inode, InodeNumbers, Invalidations, Watcher

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ktaskfs.control.access import Access
    from ktaskfs.control.command_log import CommandLog
    from ktaskfs.control.commands import Writers
    from ktaskfs.host.credentials import CallerProcess as Writer
    from ktaskfs.tasks.service import TaskService
    from ktaskfs.tasks.task import Task

USAGE: Final = """\
One job spec a line: OPERATION key=value ..., or {"op": "OPERATION", "key": "value", ...}. Each creates a task and
starts it. The operations and what they take: ../operations/*/parameters. "cancel" cancels all of your tasks.
  echo 'fallocate path=/dev/hugepages/vm0 length=64G name=vm0' > control
  cat vm0/wait
"""
CANCEL: Final = "cancel"


class TasksDirectory(Directory):
    """Follows the table of tasks; a name that another user may not know of does not exist for him."""

    __slots__ = (
        "_access",
        "_control",
        "_directories",
        "_invalidations",
        "_log",
        "_numbers",
        "_service",
        "_surroundings",
    )

    def __init__(
        self,
        ino: int,
        numbers: InodeNumbers,
        service: TaskService,
        log: CommandLog,
        writers: Writers,
        access: Access,
        watcher: Watcher,
        invalidations: Invalidations,
        *,
        time_ns: int,
    ) -> None:
        # Who may write control may mkdir; the sticky bit has the kernel keep others' hands off a task's directory.
        super().__init__(ino, Attributes(0o1555 | access.mode & 0o222, access.uid, access.gid, time_ns))
        self._numbers = numbers
        self._service = service
        self._log = log
        self._access = access
        self._invalidations = invalidations
        self._surroundings = Surroundings(
            service, log, writers, watcher, Layout.of(service.operations), open_to_all=access.hidepid == 0
        )
        self._directories: dict[Task, TaskDirectory] = {}
        control = Attributes(access.mode, access.uid, access.gid, time_ns)
        self._control = CommandFile(
            numbers.take(),
            control,
            lambda caller: USAGE,
            self._command,
            file="tasks/control",
            log=log,
            writers=writers,
        )
        service.table.observers.append(self._changed)

    def _changed(self, task: Task) -> None:
        directory = self._directories.get(task)
        if directory is not None:
            directory.changed()
            if task not in self._service.table:
                del self._directories[task]
                self._invalidations.add(self, task.name)

    def _directory(self, task: Task) -> TaskDirectory:
        directory = self._directories.get(task)
        if directory is None:
            ino = self._numbers.take(self._surroundings.layout.inodes)
            directory = self._directories[task] = TaskDirectory(ino, task, self._surroundings)
        return directory

    def lookup(self, name: str, caller: Caller) -> Inode | None:
        if name == "control":
            return self._control
        task = self._service.table.get(name)
        known = task is not None and self._access.may_know(caller.uid, task.uid)
        return self._directory(task) if task is not None and known else None

    def entries(self, caller: Caller) -> Iterable[tuple[str, Inode]]:
        tasks = [task for task in self._service.table if self._access.may_know(caller.uid, task.uid)]
        return [("control", self._control), *((task.name, self._directory(task)) for task in tasks)]

    async def mkdir(self, name: str, caller: Caller) -> Directory:
        try:
            task = self._service.create_empty(name, caller.uid, caller.gid)
        except KtaskfsError as error:
            self._log.refused("tasks", caller, f"mkdir {name}", error)
            raise
        self._log.succeeded(caller)
        return self._directory(task)

    async def rmdir(self, name: str, caller: Caller) -> None:
        try:
            task = self._service.table.require(name)
            if caller.uid not in (0, task.uid):
                raise NotPermitted(f"task {name} is not yours")
            self._service.forget(task)
        except KtaskfsError as error:
            self._log.refused("tasks", caller, f"rmdir {name}", error)
            raise
        self._log.succeeded(caller)

    async def _command(self, writer: Writer, text: str) -> str | None:
        """Specs, one a line, all or none; or ``cancel``."""
        if text == CANCEL:
            writer.close()
            for task in self._service.table.of_user(writer.identity.uid):
                if task.state in ACTIVE:
                    self._service.cancel(task)
            return None
        try:
            specs = [parse_spec(line, self._service.operations) for line in text.split("\n") if line.strip(" \t\r")]
        except SpecError:
            writer.close()
            raise
        tasks = await self._service.run_specs(writer, specs)
        return "".join(f"{task.name}\n" for task in tasks)
