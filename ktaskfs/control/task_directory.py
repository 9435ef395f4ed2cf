"""``tasks/NAME/``: the files of one task, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from ktaskfs.control import task_text
from ktaskfs.control.commands import CommandFile
from ktaskfs.control.wait import WaitStream
from ktaskfs.errors import InvalidValue, KtaskfsError, NotPermitted, SpecError
from ktaskfs.operations.parameters import format_parameters, parameters_of
from ktaskfs.tasks.spec import parse_spec
from ktaskfs.tasks.task import ACTIVE, RESUMABLE, State
from ktaskfs.vfs import FOREVER, Attributes, Change, Directory, StreamFile, TextFile, WatchedChange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Set

    from ktaskfs.control.command_log import CommandLog
    from ktaskfs.host.credentials import Caller as Writer
    from ktaskfs.operations.parameters import Parameter
    from ktaskfs.tasks.service import TaskService
    from ktaskfs.tasks.task import Task
    from ktaskfs.vfs import Caller, Node, Watcher


@dataclass(frozen=True)
class StatusFile:
    """A file that shows something of a task; ``poll`` says on which of its changes poll(2) wakes."""

    name: str
    text: Callable[[Task], str]
    help: str
    poll: Callable[[TaskDirectory], Change | None] = lambda directory: None


STATUS_FILES: Final = (
    StatusFile("state", lambda task: f"{task.state}\n", "the state, one word", lambda each: each.of_state),
    StatusFile("status", task_text.status, "everything, for people", lambda each: each.of_progress),
    StatusFile("stat", task_text.stat, "everything, for programs", lambda each: each.of_progress),
    StatusFile("progress", task_text.progress, "done / total, in the operation's units", lambda each: each.of_progress),
    StatusFile("threads", task_text.threads, "a row for each worker thread"),
    StatusFile("result", lambda task: task.result, "what the operation found; empty before the end"),
    StatusFile("error", task_text.error, "0, or ERRNAME at POSITION: message"),
)


@dataclass(frozen=True)
class Verb:
    """A word for a task's ``control`` file, accepted in ``states``.

    ``owner_only``: it makes a worker run, which it does with the rights of whoever wrote; so it takes nobody but
    the task's owner, not even root, whom another's task could otherwise send anywhere.
    """

    states: Set[State]
    run: Callable[[TaskService, Task, Writer], Awaitable[None]]
    help: str
    owner_only: bool = False


async def _start(service: TaskService, task: Task, writer: Writer) -> None:
    await service.start(task, writer)


async def _resume(service: TaskService, task: Task, writer: Writer) -> None:
    await service.resume(task, writer)


def _simple(act: Callable[[TaskService, Task], None]) -> Callable[[TaskService, Task, Writer], Awaitable[None]]:
    async def run(service: TaskService, task: Task, writer: Writer) -> None:
        writer.close()
        act(service, task)

    return run


VERBS: Final[Mapping[str, Verb]] = {
    "start": Verb(frozenset({State.NEW}), _start, "run a task that was made with mkdir", owner_only=True),
    "pause": Verb(frozenset({State.RUNNING}), _simple(lambda s, t: s.pause(t)), "begin no further chunk until resume"),
    "resume": Verb(
        RESUMABLE | {State.PAUSED}, _resume, "go on; a task that ended early does the rest", owner_only=True
    ),
    "cancel": Verb(ACTIVE, _simple(lambda s, t: s.cancel(t)), "end after the chunks at work"),
    "kill": Verb(ACTIVE, _simple(lambda s, t: s.kill(t)), "kill the worker, even in the middle of a chunk"),
}

LIVE_PARAMETERS: Final = frozenset({"max_threads", "nice", "rate_max"})
"""Parameters that may change while the task runs."""


INODES: Final = 64
"""Inode numbers that a task's directory takes; more than it can have files."""


class TaskDirectory(Directory):
    """The files of ``task``, made when they are looked up.

    ``of_state`` is notified when its state changes, ``of_progress`` when anything of it does, work done included.
    """

    __slots__ = ("_files", "_log", "_service", "of_progress", "of_state", "task")

    def __init__(
        self, ino: int, task: Task, service: TaskService, log: CommandLog, watcher: Watcher, *, open_to_all: bool
    ) -> None:
        """``ino`` is the first of INODES consecutive numbers. ``open_to_all``: others may list it (hidepid=0)."""
        super().__init__(ino, Attributes(0o555 if open_to_all else 0o500, task.uid, task.gid, task.created_ns))
        self.task = task
        self.of_state: Change = Change()
        self.of_progress: Change = WatchedChange(self._units_done, watcher)
        self._service = service
        self._log = log
        self._files: dict[str, Node] = {}

    def changed(self) -> None:
        """The task's state has changed."""
        self.of_state.notify()
        self.of_progress.notify()

    def _units_done(self) -> int | None:
        return self.task.snapshot().done if self.task.state in ACTIVE else None

    @property
    def entry_timeout(self) -> float:  # type: ignore[override]
        # The files of an empty task change when it is told what to do.
        return 0.0 if self.task.state is State.NEW else FOREVER

    def lookup(self, name: str, caller: Caller) -> Node | None:
        if name not in self._files:
            make = self._makers().get(name)
            if make is None:
                return None
            self._files[name] = make(self.ino + 1 + len(self._files))
        return self._files[name]

    def entries(self, caller: Caller) -> Iterable[tuple[str, Node]]:
        return [(name, node) for name in self._makers() if (node := self.lookup(name, caller)) is not None]

    def _makers(self) -> dict[str, Callable[[int], Node]]:
        """The files in order of listing, and what makes each from its inode number."""
        makers: dict[str, Callable[[int], Node]] = {"control": self._control, "op": self._operation, "wait": self._wait}
        makers |= {each.name: partial(self._status, each) for each in STATUS_FILES}
        return makers | {each.name: partial(self._parameter, each) for each in self._parameters()}

    def _parameters(self) -> Iterable[Parameter]:
        """Those of the operation, or of all operations as long as none is set; ``name`` is the directory's own."""
        task = self.task
        kinds = self._service.operations.values() if task.operation is None else [task.operation]
        found = {each.name: each for kind in kinds for each in parameters_of(kind.parameters)}
        return [each for each in found.values() if each.name != "name"]

    def _control(self, ino: int) -> Node:
        file = f"tasks/{self.task.name}/control"
        return CommandFile(ino, self._mode(0o640), self._verbs, self._command, file=file, log=self._log)

    def _wait(self, ino: int) -> Node:
        return StreamFile(ino, self._mode(0o440), lambda caller: WaitStream(self.task), change=self.of_state)

    def _operation(self, ino: int) -> Node:
        return self._setting(ino, "op", self._operation_text, self._set_operation)

    def _parameter(self, parameter: Parameter, ino: int) -> Node:
        return self._setting(
            ino,
            parameter.name,
            lambda: self.task.parameter_text(parameter),
            lambda text: self._set_parameter(parameter, text),
        )

    def _mode(self, mode: int) -> Attributes:
        return Attributes(mode, self.task.uid, self.task.gid, self.task.created_ns)

    def _status(self, file: StatusFile, ino: int) -> Node:
        return TextFile(ino, self._mode(0o440), lambda caller: file.text(self.task), change=file.poll(self))

    def _setting(self, ino: int, name: str, text: Callable[[], str], write: Callable[[str], None]) -> Node:
        async def set_text(caller: Caller, value: str) -> None:
            write(value)
            self._service.save(self.task)
            self.of_progress.notify()

        file = f"tasks/{self.task.name}/{name}"
        return TextFile(
            ino,
            self._mode(0o640),
            lambda caller: f"{text()}\n",
            self._log.recording(file, set_text),
            refused=lambda caller, value, error: self._log.refused(file, caller, value, error),
        )

    def _operation_text(self) -> str:
        return "-" if self.task.operation is None else self.task.operation.name

    def _set_operation(self, text: str) -> None:
        operation = self._service.operations.get(text)
        if operation is None:
            raise InvalidValue(f"unknown operation {ascii(text)}; there are {', '.join(self._service.operations)}")
        self.task.define(operation, {})

    def _set_parameter(self, parameter: Parameter, text: str) -> None:
        if parameter.name in LIVE_PARAMETERS:
            self.task.texts[parameter.name] = parameter.kind.format(parameter.kind.parse(text))
            self._service.set_live(self.task)
        else:
            self.task.set_parameter(parameter, text)

    def _verbs(self, caller: Caller) -> str:
        return "".join(f"{word}\n" for word, verb in VERBS.items() if self.task.state in verb.states)

    async def _command(self, writer: Writer, text: str) -> str | None:
        """A verb, or the spec of an empty task, which starts it."""
        verb = VERBS.get(text)
        if verb is None:
            await self._run_spec(writer, text)
        elif verb.owner_only and writer.identity.uid != self.task.uid and self.task.state is not State.PAUSED:
            writer.close()
            raise NotPermitted(f"only its owner, user {self.task.uid}, can {text} it: it runs with the writer's rights")
        else:
            await verb.run(self._service, self.task, writer)
        return None

    async def _run_spec(self, writer: Writer, text: str) -> None:
        task = self.task
        before = task.operation, task.texts
        try:
            if task.state is not State.NEW:
                message = f"unknown verb {ascii(text)}; there are {', '.join(VERBS)}"
                raise SpecError(message, line=text, start=0, end=len(text))
            if writer.identity.uid != task.uid:
                raise NotPermitted(f"only its owner, user {task.uid}, can start it: it runs with the writer's rights")
            spec = parse_spec(text, self._service.operations)
            if spec.parameters.name not in (None, task.name):
                raise InvalidValue(f"the task's name is {task.name}")
        except KtaskfsError:
            writer.close()
            raise
        task.define(spec.operation, format_parameters(spec.parameters))
        try:
            await self._service.start(task, writer)
        except KtaskfsError:
            task.operation, task.texts = before
            raise
