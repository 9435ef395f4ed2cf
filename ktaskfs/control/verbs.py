"""The words and specs that ``tasks/NAME/control`` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import InvalidValue, KtaskfsError, NotPermitted, SpecError
from ktaskfs.tasks.spec import parse_spec
from ktaskfs.tasks.task import ACTIVE, RESUMABLE, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Set

    from ktaskfs.host.credentials import CallerProcess as Writer
    from ktaskfs.tasks.service import TaskService
    from ktaskfs.tasks.task import Task


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


def accepted(task: Task) -> str:
    """The verbs that the task takes now, one a line."""
    return "".join(f"{word}\n" for word, verb in VERBS.items() if task.state in verb.states)


async def command(service: TaskService, task: Task, writer: Writer, text: str) -> None:
    """A verb, or the spec of an empty task, which starts it. Takes ``writer`` over. Raises KtaskfsError."""
    try:
        task.require_known()
    except KtaskfsError:
        writer.close()
        raise
    verb = VERBS.get(text)
    if verb is None:
        await _run_spec(service, task, writer, text)
    elif verb.owner_only and writer.identity.uid != task.uid and task.state is not State.PAUSED:
        writer.close()
        raise NotPermitted(f"only its owner, user {task.uid}, can {text} it: it runs with the writer's rights")
    else:
        await verb.run(service, task, writer)


async def _run_spec(service: TaskService, task: Task, writer: Writer, text: str) -> None:
    try:
        if task.state is not State.NEW:
            message = f"unknown verb {ascii(text)}; there are {', '.join(VERBS)}"
            raise SpecError(message, line=text, start=0, end=len(text))
        if writer.identity.uid != task.uid:
            raise NotPermitted(f"only its owner, user {task.uid}, can start it: it runs with the writer's rights")
        spec = parse_spec(text, service.operations)
        if spec.parameters.name not in (None, task.name):
            raise InvalidValue(f"the task's name is {task.name}")
    except KtaskfsError:
        writer.close()
        raise
    await service.start(task, writer, spec)
