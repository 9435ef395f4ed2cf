"""One task in the daemon: its parameters, its state, and the page of its worker."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import InvalidValue, NotPermitted, TargetError, TaskForgotten, WrongState
from ktaskfs.operations.base.parameters import MAX, parse_parameters
from ktaskfs.progress import Phase, Requests, Snapshot, read_snapshot, write_requests
from ktaskfs.tasks.history import History
from ktaskfs.tasks.pace import Pace
from ktaskfs.units import BYTES, parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

    from ktaskfs.operations.base.operation import SpecWord
    from ktaskfs.operations.base.parameters import Parameter, TaskParameters
    from ktaskfs.tasks.kept_caller import KeptCaller
    from ktaskfs.tasks.worker_handle import WorkerHandle
    from ktaskfs.units import Units


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
"""The state of a task by the last phase of its worker. A worker that died in an earlier phase: interrupted."""

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
"""The snapshot of a task that never had a worker."""


class Origin(NamedTuple):
    """The parts of a task that never change: its number and name, its owner, and when it was made (ns since 1970)."""

    number: int
    name: str
    uid: int
    gid: int
    created_ns: int

    @classmethod
    def now(cls, number: int, name: str, uid: int, gid: int) -> Origin:
        """Of a task that is made now."""
        return cls(number, name, uid, gid, time.time_ns())


class Task:
    """A task. Used only on the trio thread; files read it at each request.

    origin:     what never changes, of which each part is an attribute, too.
    history:    its work and the results of its runs.
    requests:   those to its worker.
    pace:       its speed.
    worker:     from the fork until its end is known.
    caller:     the caller of its worker, while it is QUEUED.
    forgotten:  it was removed from the table, so its open files fail.

    start_cancelled: its last start was cancelled before the work began: so it was not refused.
    """

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.number, self.name, self.uid, self.gid, self.created_ns = origin
        self.state = State.NEW
        self.history = History()
        self.requests = Requests()
        self.pace = Pace()
        self.worker: WorkerHandle | None = None
        self.caller: KeptCaller | None = None
        self.forgotten = False
        self.start_cancelled = False

    def __repr__(self) -> str:
        return f"<Task {self.name} {self.state}>"

    @property
    def operation(self) -> SpecWord | None:
        """The operation, None while an empty task has none."""
        return self.history.operation

    @property
    def units(self) -> Units:
        """The unit of its positions; bytes while it has no operation."""
        return BYTES if self.operation is None else self.operation.units

    @property
    def texts(self) -> Mapping[str, str]:
        """The given parameters, as canonical text."""
        return self.history.texts

    def define(self, operation: SpecWord, texts: Mapping[str, str]) -> None:
        """Set the operation and ``texts`` of a new task.

        Earlier texts stay if ``texts`` does not name them and the operation has the parameter.
        """
        self.require({State.NEW}, "a spec")
        known = {each.name for each in operation.declared}
        kept = {name: text for name, text in self.texts.items() if name in known}
        self.history = self.history._replace(operation=operation, texts={**kept, **texts})

    def set_parameter(self, parameter: Parameter, text: str) -> None:
        """Set one parameter of a new task; raises InvalidValue, WrongState."""
        self.require({State.NEW}, f"setting {parameter.name}")
        self.set_text(parameter, text)

    def set_text(self, parameter: Parameter, text: str) -> None:
        """Set a parameter. Writing the placeholder unsets it.

        A task that ended early may be resumed with other values. A done task never runs again, and its record, which
        each write replaces, may hold a large result. Raises InvalidValue, and WrongState for a done task.
        """
        self.require(set(State) - {State.DONE, State.PLANNED}, f"setting {parameter.name}")
        texts = dict(self.texts)
        if text == parameter.default_text() and parameter.default is None:
            texts.pop(parameter.name, None)
        else:
            texts[parameter.name] = parameter.kind.format(parameter.kind.parse(text))
        self.history = self.history._replace(texts=texts)

    def limit_rights(self, permitted: int) -> None:
        """Record that a caller with these capabilities has defined a part of the task."""
        self.history = self.history._replace(rights=self.history.rights & permitted)

    def require_rights(self, permitted: int) -> None:
        """Raise NotPermitted for a starter with capabilities that one of the task's authors lacked:

        the paths may be a trap for these capabilities.
        """
        more = permitted & ~self.history.rights
        if more:
            raise NotPermitted(
                f"task {self.name} was defined without some of your capabilities ({more:#x}): write a new spec"
            )

    def parameter_text(self, parameter: Parameter) -> str:
        """The text of a parameter's file: the given value, or the default in use."""
        name = parameter.name
        return self.texts.get(name, self.history.used.get(name, parameter.default_text()))

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
        """Raise TaskForgotten for a removed task."""
        if self.forgotten:
            raise TaskForgotten(f"task {self.name} was removed")

    def snapshot(self) -> Snapshot:
        """The worker's current or last report."""
        if self.worker is not None:
            return read_snapshot(self.worker.page, self.worker.shape)
        return self.history.final or EMPTY

    @property
    def only_plans(self) -> bool:
        """Whether it only checks (``plan=1``)."""
        return self.texts.get("plan") == "1"

    def rate_limit(self) -> int:
        """Maximum units per second, 0 for no limit."""
        text = self.texts.get("rate_max", MAX)
        return 0 if text == MAX else parse_size(text)

    def total(self, snapshot: Snapshot) -> int:
        """Units of the whole task, including those of earlier runs."""
        return self.history.base + (snapshot.total or self.history.planned)

    def done(self, snapshot: Snapshot) -> int:
        """Units finished, in all runs."""
        return self.history.base + snapshot.done

    def ask(self, requests: Requests) -> None:
        """Apply ``requests``; wakes a worker only after a change.

        Raises TargetError if its page cannot be written, and then keeps the old requests.
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
