"""``tasks/NAME/``: the files of one task, each declared once."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.control import task_text
from ktaskfs.control.commands import CommandFile, Commands
from ktaskfs.control.privilege import capabilities_of, require_power_over
from ktaskfs.control.verbs import accepted, command
from ktaskfs.control.wait import WaitStream
from ktaskfs.errors import InvalidValue, KtaskfsError
from ktaskfs.tasks.task import ACTIVE, State
from ktaskfs.vfs import FOREVER, Attributes, Change, Directory, File, OpenFile, StreamFile, TextFile, WatchedChange
from ktaskfs.vfs.inode import wants_write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ktaskfs.control.filesystem import Filesystem
    from ktaskfs.operations.base.operation import Operation
    from ktaskfs.operations.base.parameters import Parameter
    from ktaskfs.tasks.task import Task
    from ktaskfs.vfs import Caller, Inode


@dataclass(frozen=True)
class StatusFile:
    """A file that shows something of a task; ``poll`` says on which of its changes poll(2) wakes."""

    name: str
    text: Callable[[TaskDirectory], str | bytes]
    help: str
    poll: Callable[[TaskDirectory], Change | None] = lambda directory: None


def _of_task(text: Callable[[Task], str | bytes]) -> Callable[[TaskDirectory], str | bytes]:
    return lambda directory: text(directory.known_task)


def _status_text(directory: TaskDirectory) -> str:
    return task_text.status(directory.known_task, directory.parameters().values())


def _state_changes(directory: TaskDirectory) -> Change:
    return directory.of_state


def _progress_changes(directory: TaskDirectory) -> Change:
    return directory.of_progress


STATUS_FILES: Final = (
    StatusFile("state", _of_task(lambda task: f"{task.state}\n"), "the state, one word", _state_changes),
    StatusFile("status", _status_text, "everything, for people", _progress_changes),
    StatusFile("stat", _of_task(task_text.stat), "everything, for programs", _progress_changes),
    StatusFile("progress", _of_task(task_text.progress), "done / total, in the operation's units", _progress_changes),
    StatusFile("threads", _of_task(task_text.threads), "a row for each worker thread"),
    StatusFile("result", _of_task(lambda task: task.history.result), "what the operation found; empty before the end"),
    StatusFile("error", _of_task(task_text.error), "0, or ERRNAME at POSITION: message"),
)

LIVE_PARAMETERS: Final = frozenset({"max_threads", "nice", "rate_max"})
"""Parameters that may change while the task runs."""


@dataclass(frozen=True)
class TaskFiles:
    """Which files a task can have, worked out once for all tasks.

    numbers:    for each, in order of listing, its inode number after that of the directory.
    parameters: by the name of the operation; by None, for a task without one, those of all operations.
    """

    numbers: Mapping[str, int]
    parameters: Mapping[str | None, Mapping[str, Parameter]]

    @classmethod
    def of(cls, operations: Mapping[str, Operation[Any]]) -> TaskFiles:
        """The files that ``operations`` declare. The parameter ``name`` has none: the directory's name is its value."""
        parameters: dict[str | None, Mapping[str, Parameter]] = {
            name: {each.name: each for each in operation.declared if each.name != "name"}
            for name, operation in operations.items()
        }
        every = {name: parameter for each in parameters.values() for name, parameter in each.items()}
        return cls({name: number for number, name in enumerate([*_FILES, *every], 1)}, parameters | {None: every})

    @property
    def inodes(self) -> int:
        """Inode numbers that a task takes."""
        return 1 + len(self.numbers)


class TaskDirectory(Directory):
    """The files of ``task``. Their inodes are made anew at each lookup, and live as long as the kernel knows them.

    ``of_state`` is notified when the task's state changes, ``of_progress`` when anything of the task changes.
    """

    __slots__ = ("_files", "fs", "of_progress", "of_state", "readable", "task", "writable")

    def __init__(self, ino: int, task: Task, fs: Filesystem, files: TaskFiles) -> None:
        """``ino`` is the first of ``files.inodes`` numbers."""
        mode = 0o555 if fs.access.hidepid == 0 else 0o500  # whether others may list it
        super().__init__(ino, Attributes(mode, task.uid, task.gid, task.created_ns))
        self.task = task
        self.fs = fs
        self._files = files
        self.of_state: Change = Change()
        self.of_progress: Change = WatchedChange(self._units_done, fs.watcher)
        self.readable = Attributes(0o440, task.uid, task.gid, task.created_ns)
        self.writable = Attributes(0o640, task.uid, task.gid, task.created_ns)

    @property
    def known_task(self) -> Task:
        """The task, for an open file of it. Raises TaskForgotten once the task was removed."""
        self.task.require_known()
        return self.task

    def changed(self) -> None:
        """The task's state has changed, or it was removed."""
        self.of_state.notify()
        self.of_progress.notify()

    def _units_done(self) -> int | None:
        return self.task.snapshot().done if self.task.state in ACTIVE else None

    @property
    def entry_timeout(self) -> float:  # type: ignore[override]
        # The files of an empty task change when it gets its operation.
        return 0.0 if self.task.state is State.NEW else FOREVER

    def parameters(self) -> Mapping[str, Parameter]:
        """The parameters that are files now."""
        operation = self.task.operation
        return self._files.parameters[None if operation is None else operation.name]

    def lookup(self, name: str, caller: Caller) -> Inode | None:
        number = self._files.numbers.get(name)
        return None if number is None else self._inode(name, self.ino + number)

    def entries(self, caller: Caller) -> Iterable[tuple[str, Inode]]:
        found = ((name, self.lookup(name, caller)) for name in self._files.numbers)
        return [(name, inode) for name, inode in found if inode is not None]

    def _inode(self, name: str, ino: int) -> Inode | None:
        if name in self.parameters():
            return _ParameterFile(ino, self, name)
        make = _FILES.get(name)
        return None if make is None else make(self, ino)


class _StatusInode(File):
    """A file that shows something. It holds little, because a listing makes one of each for every task."""

    __slots__ = ("_directory", "_file")

    def __init__(self, ino: int, directory: TaskDirectory, file: StatusFile) -> None:
        super().__init__(ino, directory.readable)
        self._directory = directory
        self._file = file

    async def open(self, caller: Caller, flags: int) -> OpenFile:
        directory, file = self._directory, self._file
        shown = TextFile(
            self.ino,
            self._attributes,
            lambda _: file.text(directory),
            change=file.poll(directory),
            texts=directory.fs.limits.texts,
        )
        return await shown.open(caller, flags)


class _SettingFile(File):
    """A file with one value of a task. A write sets the value, and records it."""

    __slots__ = ("_directory", "_name")

    def __init__(self, ino: int, directory: TaskDirectory, name: str) -> None:
        super().__init__(ino, directory.writable)
        self._directory = directory
        self._name = name

    @abstractmethod
    def text(self) -> str:
        """The value."""

    @abstractmethod
    def set(self, text: str) -> None:
        """Set the value; raises KtaskfsError."""

    async def open(self, caller: Caller, flags: int) -> OpenFile:
        directory, task = self._directory, self._directory.task
        file_name = f"tasks/{task.name}/{self._name}"
        rights = 0
        if wants_write(flags):
            try:
                effective, rights = capabilities_of(caller)
                require_power_over(caller.uid, effective, task.uid, f"set {self._name} of task {task.name}")
            except KtaskfsError as error:
                directory.fs.log.refused(file_name, caller, "(open)", error)
                raise

        async def write(_: Caller, text: str) -> None:
            self.set(text)
            if task.state is State.NEW:
                task.limit_rights(rights)
            directory.fs.service.save(directory.task)
            directory.of_progress.notify()

        write_recorded, refused = directory.fs.log.keeping(file_name, write)
        file = TextFile(
            self.ino,
            self._attributes,
            lambda _: f"{self.text()}\n",
            write_recorded,
            refused=refused,
            texts=directory.fs.limits.texts,
        )
        return await file.open(caller, flags)


class _OperationFile(_SettingFile):
    """``op``."""

    __slots__ = ()

    def text(self) -> str:
        operation = self._directory.known_task.operation
        return "-" if operation is None else operation.name

    def set(self, text: str) -> None:
        operations = self._directory.fs.service.operations
        if text not in operations:
            raise InvalidValue(f"unknown operation {ascii(text)}; there are {', '.join(operations)}")
        self._directory.known_task.define(operations[text], {})


class _ParameterFile(_SettingFile):
    """A parameter of the operation."""

    __slots__ = ()

    @property
    def _parameter(self) -> Parameter:
        parameter = self._directory.parameters().get(self._name)
        if parameter is None:  # the operation was changed since the file was looked up
            raise InvalidValue(f"the operation has no parameter {self._name}")
        return parameter

    def text(self) -> str:
        return self._directory.known_task.parameter_text(self._parameter)

    def set(self, text: str) -> None:
        task, parameter = self._directory.known_task, self._parameter
        if self._name in LIVE_PARAMETERS:
            task.set_text(parameter, text)
            self._directory.fs.service.set_live(task)
        else:
            task.set_parameter(parameter, text)


def _control(directory: TaskDirectory, ino: int) -> Inode:
    task, fs = directory.task, directory.fs
    commands = Commands(
        f"tasks/{task.name}/control",
        lambda caller: accepted(directory.known_task),
        lambda caller, text: command(fs.service, task, caller, text),
    )
    return CommandFile(ino, directory.writable, commands, fs.log, fs.limits)


def _wait(directory: TaskDirectory, ino: int) -> Inode:
    return StreamFile(
        ino,
        directory.readable,
        lambda caller: WaitStream(directory.task),
        change=directory.of_state,
        quota=directory.fs.limits.streams,
    )


def _status(file: StatusFile) -> Callable[[TaskDirectory, int], Inode]:
    return lambda directory, ino: _StatusInode(ino, directory, file)


_FILES: Final[Mapping[str, Callable[[TaskDirectory, int], Inode]]] = {
    "control": _control,
    "op": lambda directory, ino: _OperationFile(ino, directory, "op"),
    "wait": _wait,
    **{each.name: _status(each) for each in STATUS_FILES},
}
"""The maker of each file that is no parameter, in order of listing."""
