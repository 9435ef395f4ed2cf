"""One task as the daemon knows it: what was asked, what state it is in, and the page of its worker."""

from __future__ import annotations

import time
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.errors import InvalidValue, NotPermitted, TargetError, TaskForgotten, WrongState
from ktaskfs.operations.base.parameters import MAX, parse_parameters
from ktaskfs.progress import Phase, Requests, Snapshot, read_snapshot, write_requests
from ktaskfs.tasks.history import History
from ktaskfs.tasks.pace import Pace
from ktaskfs.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

    from ktaskfs.operations.base.operation import Operation
    from ktaskfs.operations.base.parameters import Parameter, TaskParameters
    from ktaskfs.tasks.kept_caller import KeptCaller
    from ktaskfs.tasks.worker_handle import WorkerHandle


class State(StrEnum):
    """The states of ``tasks/NAME/state``."""

    NEW = "new"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    PLANNED = "planned"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


WORKING: Final = frozenset({State.RUNNING, State.PAUSED})
"""The worker got its GO, and outlives the daemon."""
ACTIVE: Final = WORKING | {State.STARTING}
CANCELLABLE: Final = ACTIVE | {State.QUEUED}
ENDED: Final = frozenset({State.DONE, State.PLANNED, State.FAILED, State.CANCELLED, State.INTERRUPTED})
RESUMABLE: Final = frozenset({State.FAILED, State.CANCELLED, State.INTERRUPTED})
PHASE_STATES: Final = {Phase.DONE: State.DONE, Phase.FAILED: State.FAILED, Phase.CANCELLED: State.CANCELLED}
"""The state of a task by the last phase of its worker. A worker that died in an earlier phase was interrupted."""

EMPTY: Final = Snapshot(
    phase=Phase.STARTING,
    started_ns=0,
    ended_ns=0,
    total=0,
    errno=0,
    error_position=0,
    message="",
    result_size=0,
    undone=False,
    nodes=(),
    threads=(),
)
"""The snapshot of a task that has had no worker yet."""


class Task:
    """A task. Only the trio thread touches it; everything that shows it asks it anew.

    history:    what it is to do, and what its runs came to.
    requests:   what its worker is asked.
    pace:       how fast it works.
    worker:     from the fork until the end is known.
    caller:     who its worker is to become, while it is QUEUED.
    forgotten:  it was removed from the table. Files of it that are still open give nothing any more.
    """

    def __init__(self, number: int, name: str, uid: int, gid: int, *, created_ns: int | None = None) -> None:
        self.number = number
        self.name = name
        self.uid = uid
        self.gid = gid
        self.created_ns = time.time_ns() if created_ns is None else created_ns
        self.state = State.NEW
        self.history = History()
        self.requests = Requests()
        self.pace = Pace()
        self.worker: WorkerHandle | None = None
        self.caller: KeptCaller | None = None
        self.forgotten = False

    def __repr__(self) -> str:
        return f"<Task {self.name} {self.state}>"

    @property
    def operation(self) -> Operation[Any] | None:
        """The operation, None while an empty task has none."""
        return self.history.operation

    @property
    def texts(self) -> Mapping[str, str]:
        """The given parameters, as canonical text."""
        return self.history.texts

    def define(self, operation: Operation[Any], texts: Mapping[str, str]) -> None:
        """Give a task that has not started its operation and ``texts``.

        It keeps earlier texts that ``texts`` does not name, if the operation has such a parameter.
        """
        self.require({State.NEW}, "a spec")
        known = {each.name for each in operation.declared}
        kept = {name: text for name, text in self.texts.items() if name in known}
        self.history = replace(self.history, operation=operation, texts={**kept, **texts})

    def set_parameter(self, parameter: Parameter, text: str) -> None:
        """Set one parameter of a task that has not started; raises InvalidValue, WrongState."""
        self.require({State.NEW}, f"setting {parameter.name}")
        self.set_text(parameter, text)

    def set_text(self, parameter: Parameter, text: str) -> None:
        """Set a parameter. Writing the placeholder unsets it.

        A task that ended early may be resumed with other values. One that is done never runs again, and its record,
        which each write replaces, may hold a large result. Raises InvalidValue, and WrongState for a task that is done.
        """
        self.require(set(State) - {State.DONE, State.PLANNED}, f"setting {parameter.name}")
        texts = dict(self.texts)
        if text == parameter.kind.absent and parameter.default is None and not parameter.required:
            texts.pop(parameter.name, None)
        else:
            texts[parameter.name] = parameter.kind.format(parameter.kind.parse(text))
        self.history = replace(self.history, texts=texts)

    def limit_rights(self, permitted: int) -> None:
        """Note that a caller with these capabilities has defined something of the task."""
        self.history = replace(self.history, rights=self.history.rights & permitted)

    def require_rights(self, permitted: int) -> None:
        """Raise NotPermitted for a starter with capabilities that somebody who defined the task did not have.

        The paths may be a trap that only those capabilities fall into.
        """
        more = permitted & ~self.history.rights
        if more:
            raise NotPermitted(
                f"task {self.name} was defined without some of your capabilities ({more:#x}): write a new spec"
            )

    def parameter_text(self, parameter: Parameter) -> str:
        """The text of a parameter's file: what was given, or the default."""
        return self.texts.get(parameter.name, parameter.default_text())

    def parsed(self) -> TaskParameters:
        """The parameters as values; raises InvalidValue while something is missing."""
        if self.operation is None:
            raise InvalidValue("no operation is set (write its name to op, or a spec to control)")
        values: TaskParameters = parse_parameters(self.operation.parameters, self.texts)
        return values

    def require(self, states: Set[State], what: str) -> None:
        """Raise WrongState unless the task is in one of ``states``, TaskForgotten if it was removed."""
        self.require_known()
        if self.state not in states:
            raise WrongState(f"{what} does not fit: task {self.name} is {self.state}")

    def require_known(self) -> None:
        """Raise TaskForgotten for a task that was removed."""
        if self.forgotten:
            raise TaskForgotten(f"task {self.name} was removed")

    def forget(self) -> None:
        """Note that the task was removed."""
        self.forgotten = True

    def snapshot(self) -> Snapshot:
        """The worker's report: of now, or the last one."""
        if self.worker is not None:
            return read_snapshot(self.worker.page, self.worker.shape)
        return self.history.final or EMPTY

    @property
    def only_plans(self) -> bool:
        """Whether it is to check and to tell only (``plan=1``)."""
        return self.texts.get("plan") == "1"

    def rate_limit(self) -> int:
        """Units a second that it may do, 0 for no limit."""
        text = self.texts.get("rate_max", MAX)
        return 0 if text == MAX else parse_size(text)

    def total(self, snapshot: Snapshot) -> int:
        """Units of the whole task, including those of earlier runs."""
        return self.history.base + (snapshot.total or self.history.planned)

    def done(self, snapshot: Snapshot) -> int:
        """Units finished, in all runs."""
        return self.history.base + snapshot.done

    def ask(self, requests: Requests) -> None:
        """Put ``requests`` in force; a worker is woken only if there is a change.

        Raises TargetError if its page cannot be written, and keeps the old requests then.
        """
        if requests == self.requests:
            return
        if self.worker is not None:
            try:
                write_requests(self.worker.page, requests)
                self.worker.wake()
            except OSError as error:
                raise TargetError.from_os(error, f"tell the worker of task {self.name}") from error
        self.requests = requests

    def to(self, state: State) -> None:
        """Change the state."""
        self.state = state
