"""``tasks/NAME/``: the files of one task, each declared once."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.control import figures, task_text
from ktaskfs.control.commands import CommandFile, Commands
from ktaskfs.control.privilege import require_power_over
from ktaskfs.control.shown_task import WATCHED, TaskFiles
from ktaskfs.control.verbs import accepted, command
from ktaskfs.control.wait import WaitStream
from ktaskfs.errors import InvalidValue, KtaskfsError
from ktaskfs.host.cgroups import frozen_group
from ktaskfs.tasks.task import State
from ktaskfs.vfs import Directory, File, Look, OpenFile, StreamFile, TextFile
from ktaskfs.vfs.inode import wants_write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ktaskfs.control.shown_task import ShownTask
    from ktaskfs.operations.base.operation import SpecWord
    from ktaskfs.operations.base.parameters import Parameter
    from ktaskfs.tasks.task import Task
    from ktaskfs.vfs import Caller, Change, Inode


class StatusFile(NamedTuple):
    """A status file of a task; ``poll`` selects the changes that wake poll(2)."""

    name: str
    text: Callable[[ShownTask], str | bytes]
    help: str
    poll: Callable[[ShownTask], Change | None] = lambda shown: None


def _of_task(text: Callable[[Task], str | bytes]) -> Callable[[ShownTask], str | bytes]:
    return lambda shown: text(shown.known_task)


def _status_text(shown: ShownTask) -> str:
    task = shown.known_task
    notes = ["a cancel is pending"] * shown.fs.service.is_cancelling(task)
    if held := _held(shown, task):
        notes.append(held)
    return task_text.status(task, shown.parameters().values(), "; ".join(notes))


def _held(shown: ShownTask, task: Task) -> str:
    """Why a task does not go on, if something outside holds it."""
    if task.worker is None:
        spawner = shown.fs.service.stopped_spawner if task.state is State.STARTING else None
        return "" if spawner is None else f"the spawner, process {spawner}, is stopped by a signal"
    with contextlib.suppress(OSError):  # no descriptor is left to look
        frozen = frozen_group(shown.fs.kernel.cgroups, task.worker.pid)
        if frozen is not None:
            return f"its control group {frozen} is frozen"
    return "its worker is stopped by a signal" if task.worker.is_stopped() else ""


def _state_changes(shown: ShownTask) -> Change:
    return shown.of_state


def _progress_changes(shown: ShownTask) -> Change:
    return shown.of_progress


STATUS_FILES: Final = (
    StatusFile("state", _of_task(lambda task: f"{task.state}\n"), "the state, one word", _state_changes),
    StatusFile("status", _status_text, "status for people", _progress_changes),
    StatusFile("stat", _of_task(figures.stat), "status for programs", _progress_changes),
    StatusFile("stat.json", _of_task(figures.stat_json), "status as JSON", _progress_changes),
    StatusFile("progress", _of_task(task_text.progress), "done / total, in the operation's units", _progress_changes),
    StatusFile("threads", _of_task(task_text.threads), "a row for each worker thread"),
    StatusFile("result", _of_task(lambda task: task.history.result), "what the operation found; empty before the end"),
    StatusFile("error", _of_task(task_text.error), "0, or ERRNAME at POSITION: message"),
)

LIVE_PARAMETERS: Final = frozenset({"max_threads", "nice", "rate_max"})
"""Parameters that may change while the task runs."""


class TaskDirectory(Directory):
    """The files of ``shown``. Directory and files are made for each request."""

    __slots__ = ("_shown",)

    def __init__(self, ino: int, shown: ShownTask) -> None:
        """``ino`` is the first of the numbers for ``shown.files``."""
        super().__init__(ino, shown.listed)
        self._shown = shown

    def lookup(self, name: str, caller: Caller) -> Inode | None:
        number = self._shown.files.numbers.get(name)
        return None if number is None else _file(self._shown, name, self.ino + number)

    def names(self, caller: Caller) -> Sequence[str]:
        parameters = self._shown.parameters()
        return [name for name in self._shown.files.numbers if name in _FILES or name in parameters]


class _SettingFile(File):
    """A file with one value of a task. A write sets and records it."""

    __slots__ = ("_name", "_shown")

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

    async def look(self, caller: Caller, *, anew: bool) -> Look:
        text = TextFile(self.ino, self._attributes, lambda _: f"{self.text()}\n", texts=self._shown.fs.limits.texts)
        return await text.look(caller, anew=anew)

    async def open(self, caller: Caller, flags: int) -> OpenFile:
        shown, task = self._shown, self._shown.task
        file_name = f"tasks/{task.name}/{self._name}"
        rights = 0
        if wants_write(flags):
            with shown.fs.log.refusals(file_name, caller, "(open)"):
                effective, rights = await shown.fs.callers.capabilities(caller)
                require_power_over(caller.uid, effective, task.uid, f"set {self._name} of task {task.name}")

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
            raise InvalidValue(f"unknown operation {text!a}; there are {', '.join(operations)}")
        self._shown.known_task.define(operations[text], {})


class _ParameterFile(_SettingFile):
    """A parameter of the operation."""

    __slots__ = ()

    @property
    def _parameter(self) -> Parameter:
        parameter = self._shown.parameters().get(self._name)
        if parameter is None:  # the operation changed after the lookup of the file
            raise InvalidValue(f"the operation has no parameter {self._name}")
        return parameter

    def text(self) -> str:
        return self._shown.known_task.parameter_text(self._parameter)

    def set(self, text: str) -> None:
        task, parameter = self._shown.known_task, self._parameter
        if self._name in LIVE_PARAMETERS:
            before = task.history
            task.set_text(parameter, text)
            try:
                self._shown.fs.service.set_live(task)
            except KtaskfsError:  # the worker still has the old value
                task.history = before
                raise
        else:
            task.set_parameter(parameter, text)


def _control(shown: ShownTask, ino: int) -> Inode:
    task, fs = shown.task, shown.fs
    commands = Commands(
        f"tasks/{task.name}/control",
        lambda caller: accepted(shown.known_task),
        lambda caller, text: command(fs.service, task, caller, text),
    )
    return CommandFile(ino, shown.writable, commands, log=fs.log, limits=fs.limits, callers=fs.callers)


def _wait(shown: ShownTask, ino: int) -> Inode:
    return StreamFile(
        ino,
        shown.readable,
        lambda caller: WaitStream(shown.task, caller.uid, shown.of_state, shown.fs.portions),
        change=shown.of_state,
        patience=shown.fs.patience,
        splices=shown.fs.splices,
        quota=shown.fs.limits.streams,
    )


def _status(file: StatusFile) -> Callable[[ShownTask, int], Inode]:
    text, poll = file.text, file.poll
    return lambda shown, ino: TextFile(
        ino, shown.readable, lambda _: text(shown), change=poll(shown), texts=shown.fs.limits.texts
    )


_FILES: Final[Mapping[str, Callable[[ShownTask, int], Inode]]] = {
    "control": _control,
    "op": lambda shown, ino: _OperationFile(ino, shown, "op"),
    "wait": _wait,
    **{each.name: _status(each) for each in STATUS_FILES},
}
"""The factory of each file except parameters, in order of listing."""


def _file(shown: ShownTask, name: str, ino: int) -> Inode | None:
    make = _FILES.get(name)
    if make is None:
        return _ParameterFile(ino, shown, name) if name in shown.parameters() else None
    return make(shown, shown.watch() if name == WATCHED else ino)


def inode_of(shown: ShownTask, ino: int) -> Inode | None:
    """The task's directory, or a file in it, in any view; None if it has no file of this number now."""
    number = ino & (1 << shown.files.bits) - 1
    if not number:
        return TaskDirectory(ino, shown)
    name = shown.files.names.get(number)
    return None if name is None else _file(shown, name, ino)


def task_files(operations: Mapping[str, SpecWord]) -> TaskFiles:
    """The possible files of tasks of ``operations``."""
    return TaskFiles.of(operations, _FILES)
