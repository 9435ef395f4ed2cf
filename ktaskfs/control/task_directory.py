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
from ktaskfs.host.cgroups import frozen_group
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
    text: Callable[[ShownTask], str | bytes]
    help: str
    poll: Callable[[ShownTask], Change | None] = lambda shown: None


def _of_task(text: Callable[[Task], str | bytes]) -> Callable[[ShownTask], str | bytes]:
    return lambda shown: text(shown.known_task)


def _status_text(shown: ShownTask) -> str:
    task = shown.known_task
    frozen = None if task.worker is None else frozen_group(shown.fs.kernel.cgroups, task.worker.pid)
    return task_text.status(task, shown.parameters().values(), frozen)


def _state_changes(shown: ShownTask) -> Change:
    return shown.of_state


def _progress_changes(shown: ShownTask) -> Change:
    return shown.of_progress


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

    numbers:    for each, in order of listing, what is added to the inode number of the directory.
    names:      the file by that number.
    parameters: by the name of the operation; by None, for a task without one, those of all operations.
    """

    numbers: Mapping[str, int]
    names: Mapping[int, str]
    parameters: Mapping[str | None, Mapping[str, Parameter]]

    @classmethod
    def of(cls, operations: Mapping[str, Operation[Any]]) -> TaskFiles:
        """The files that ``operations`` declare. The parameter ``name`` has none: the directory's name is its value."""
        parameters: dict[str | None, Mapping[str, Parameter]] = {
            name: {each.name: each for each in operation.declared if each.name != "name"}
            for name, operation in operations.items()
        }
        every = {name: parameter for each in parameters.values() for name, parameter in each.items()}
        names = dict(enumerate([*_FILES, *every], 1))
        return cls({name: number for number, name in names.items()}, names, parameters | {None: every})

    @property
    def bits(self) -> int:
        """Bits that tell the inodes of a task apart: 0 is its directory."""
        return len(self.numbers).bit_length()


class ShownTask:
    """A task as all views show it, in the inode numbers of ``block``.

    ``of_state`` is notified when the task's state changes, ``of_progress`` when anything of the task changes.
    """

    __slots__ = ("block", "files", "fs", "listed", "of_progress", "of_state", "readable", "task", "writable")

    def __init__(self, block: int, task: Task, fs: Filesystem, files: TaskFiles) -> None:
        self.block = block
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
        """The task's state has changed, or it was removed."""
        self.of_state.notify()
        self.of_progress.notify()

    def _units_done(self) -> int | None:
        return self.task.snapshot().done if self.task.state in ACTIVE else None

    def parameters(self) -> Mapping[str, Parameter]:
        """The parameters that are files now."""
        operation = self.task.operation
        return self.files.parameters[None if operation is None else operation.name]


class TaskDirectory(Directory):
    """The files of ``shown``. Directory and files are made anew at each request, and hold little: a listing of all
    tasks makes all of them.
    """

    __slots__ = ("_shown",)

    def __init__(self, ino: int, shown: ShownTask) -> None:
        """``ino`` is the first of the numbers that ``shown.files`` needs."""
        super().__init__(ino, shown.listed)
        self._shown = shown

    @property
    def entry_timeout(self) -> float:  # type: ignore[override]
        # The files of an empty task change when it gets its operation.
        return 0.0 if self._shown.task.state is State.NEW else FOREVER

    def lookup(self, name: str, caller: Caller) -> Inode | None:
        number = self._shown.files.numbers.get(name)
        return None if number is None else self._inode(name, number)

    def entries(self, caller: Caller) -> Iterable[tuple[str, Inode]]:
        found = ((name, self._inode(name, number)) for name, number in self._shown.files.numbers.items())
        return ((name, inode) for name, inode in found if inode is not None)

    def find(self, ino: int) -> Inode | None:
        if ino == self.ino:
            return self
        number = ino - self.ino
        name = self._shown.files.names.get(number)
        return None if name is None else self._inode(name, number)

    def _inode(self, name: str, number: int) -> Inode | None:
        if name in self._shown.parameters():
            return _ParameterFile(self.ino + number, self._shown, name)
        make = _FILES.get(name)
        return None if make is None else make(self._shown, self.ino + number)


class _StatusInode(File):
    """A file that shows something."""

    __slots__ = ("_shown", "_file")

    def __init__(self, ino: int, shown: ShownTask, file: StatusFile) -> None:
        super().__init__(ino, shown.readable)
        self._shown = shown
        self._file = file

    async def open(self, caller: Caller, flags: int) -> OpenFile:
        shown, file = self._shown, self._file
        text = TextFile(
            self.ino,
            self._attributes,
            lambda _: file.text(shown),
            change=file.poll(shown),
            texts=shown.fs.limits.texts,
        )
        return await text.open(caller, flags)


class _SettingFile(File):
    """A file with one value of a task. A write sets the value, and records it."""

    __slots__ = ("_shown", "_name")

    def __init__(self, ino: int, shown: ShownTask, name: str) -> None:
        super().__init__(ino, shown.writable)
        self._shown = shown
        self._name = name

    @abstractmethod
    def text(self) -> str:
        """The value."""

    @abstractmethod
    def set(self, text: str) -> None:
        """Set the value; raises KtaskfsError."""

    async def open(self, caller: Caller, flags: int) -> OpenFile:
        shown, task = self._shown, self._shown.task
        file_name = f"tasks/{task.name}/{self._name}"
        rights = 0
        if wants_write(flags):
            try:
                effective, rights = capabilities_of(caller)
                require_power_over(caller.uid, effective, task.uid, f"set {self._name} of task {task.name}")
            except KtaskfsError as error:
                shown.fs.log.refused(file_name, caller, "(open)", error)
                raise

        async def write(_: Caller, text: str) -> None:
            self.set(text)
            if task.state is State.NEW:
                task.limit_rights(rights)
            shown.fs.service.save(shown.task)
            shown.of_progress.notify()

        write_recorded, refused = shown.fs.log.keeping(file_name, write)
        file = TextFile(
            self.ino,
            self._attributes,
            lambda _: f"{self.text()}\n",
            write_recorded,
            refused=refused,
            texts=shown.fs.limits.texts,
        )
        return await file.open(caller, flags)


class _OperationFile(_SettingFile):
    """``op``."""

    __slots__ = ()

    def text(self) -> str:
        operation = self._shown.known_task.operation
        return "-" if operation is None else operation.name

    def set(self, text: str) -> None:
        operations = self._shown.fs.service.operations
        if text not in operations:
            raise InvalidValue(f"unknown operation {ascii(text)}; there are {', '.join(operations)}")
        self._shown.known_task.define(operations[text], {})


class _ParameterFile(_SettingFile):
    """A parameter of the operation."""

    __slots__ = ()

    @property
    def _parameter(self) -> Parameter:
        parameter = self._shown.parameters().get(self._name)
        if parameter is None:  # the operation was changed since the file was looked up
            raise InvalidValue(f"the operation has no parameter {self._name}")
        return parameter

    def text(self) -> str:
        return self._shown.known_task.parameter_text(self._parameter)

    def set(self, text: str) -> None:
        task, parameter = self._shown.known_task, self._parameter
        if self._name in LIVE_PARAMETERS:
            task.set_text(parameter, text)
            self._shown.fs.service.set_live(task)
        else:
            task.set_parameter(parameter, text)


def _control(shown: ShownTask, ino: int) -> Inode:
    task, fs = shown.task, shown.fs
    commands = Commands(
        f"tasks/{task.name}/control",
        lambda caller: accepted(shown.known_task),
        lambda caller, text: command(fs.service, task, caller, text),
    )
    return CommandFile(ino, shown.writable, commands, fs.log, fs.limits)


def _wait(shown: ShownTask, ino: int) -> Inode:
    return StreamFile(
        ino,
        shown.readable,
        lambda caller: WaitStream(shown.task),
        change=shown.of_state,
        patience=shown.fs.patience,
        quota=shown.fs.limits.streams,
    )


def _status(file: StatusFile) -> Callable[[ShownTask, int], Inode]:
    return lambda shown, ino: _StatusInode(ino, shown, file)


_FILES: Final[Mapping[str, Callable[[ShownTask, int], Inode]]] = {
    "control": _control,
    "op": lambda shown, ino: _OperationFile(ino, shown, "op"),
    "wait": _wait,
    **{each.name: _status(each) for each in STATUS_FILES},
}
"""The maker of each file that is no parameter, in order of listing."""
