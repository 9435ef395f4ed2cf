"""The verbs and specs that ``tasks/NAME/control`` accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.control.privilege import require_power_over
from ktaskfs.errors import InvalidValue, NotPermitted, SpecError
from ktaskfs.tasks.task import CANCELLABLE, RESUMABLE, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Set

    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.tasks.service import TaskService
    from ktaskfs.tasks.spec import Spec
    from ktaskfs.tasks.task import Task


class Verb(NamedTuple):
    """A word for a task's ``control`` file, accepted in ``states``.

    ``owner_only``: only the task's owner may use it, not even root. It starts a worker with the writer's rights,
    and the paths in another user's task could mislead root.
    """

    states: Set[State]
    run: Callable[[TaskService, Task, CallerProcess], Awaitable[None]]
    help: str
    owner_only: bool = False


async def _start(service: TaskService, task: Task, caller: CallerProcess) -> None:
    await service.start(task, caller)


async def _resume(service: TaskService, task: Task, caller: CallerProcess) -> None:
    await service.resume(task, caller)


def _simple(act: Callable[[TaskService, Task], None]) -> Callable[[TaskService, Task, CallerProcess], Awaitable[None]]:
    async def run(service: TaskService, task: Task, caller: CallerProcess) -> None:
        caller.close()
        act(service, task)

    return run


VERBS: Final[Mapping[str, Verb]] = {
    "start": Verb(frozenset({State.NEW}), _start, "start a task made with mkdir", owner_only=True),
    "pause": Verb(frozenset({State.RUNNING}), _simple(lambda s, t: s.pause(t)), "start no new chunk until resume"),
    "resume": Verb(
        RESUMABLE | {State.PAUSED}, _resume, "continue; a task that ended early does the rest", owner_only=True
    ),
    "cancel": Verb(CANCELLABLE, _simple(lambda s, t: s.cancel(t)), "end after the current chunks"),
    "kill": Verb(CANCELLABLE, _simple(lambda s, t: s.kill(t)), "kill the worker, even in the middle of a chunk"),
}


def accepted(task: Task) -> str:
    """The verbs that the task accepts now, one per line."""
    return "".join(f"{word}\n" for word, verb in VERBS.items() if task.state in verb.states)


async def command(service: TaskService, task: Task, caller: CallerProcess, text: str) -> None:
    """Run a verb, or start an empty task with a spec. Takes ``caller`` over. Raises KtaskfsError."""
    verb, identity, spec = VERBS.get(text), caller.identity, None
    try:
        task.require_known()
        if verb is None:
            spec = await _read_spec(service, task, identity.uid, text)
        else:
            if verb.owner_only and task.state is not State.PAUSED:
                _require_owner(task, identity.uid, text)
            require_power_over(identity.uid, identity.effective, task.uid, f"{text} task {task.name}")
    except BaseException:
        caller.close()
        raise
    if verb is None:
        await service.start(task, caller, spec)
    else:
        await verb.run(service, task, caller)


async def _read_spec(service: TaskService, task: Task, uid: int, text: str) -> Spec:
    """The spec with which ``uid`` starts an empty task. Raises KtaskfsError."""
    if task.state is not State.NEW:
        message = f"unknown verb {text!a}; there are {', '.join(VERBS)}"
        raise SpecError(message, line=text, start=0, end=len(text))
    _require_owner(task, uid, "start")
    spec = await service.specs.read_one(uid, text)
    if spec.parameters.name not in (None, task.name):
        raise InvalidValue(f"the task's name is {task.name}")
    return spec


def _require_owner(task: Task, uid: int, what: str) -> None:
    """Raise NotPermitted unless ``uid`` owns the task."""
    if uid != task.uid:
        raise NotPermitted(f"only its owner, user {task.uid}, can {what} it: it runs with the owner's rights")
