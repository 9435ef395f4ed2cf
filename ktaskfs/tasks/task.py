"""One task as the daemon knows it: what was asked, what state it is in, and the page of its worker."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import trio

from ktaskfs.errors import InvalidValue, TargetError, TaskForgotten, WrongState
from ktaskfs.operations.base.parameters import MAX, parameters_of, parse_parameters
from ktaskfs.operations.base.resume import Baseline
from ktaskfs.operations.ranges._range import RangeParameters
from ktaskfs.progress import Phase, Requests, Shape, Snapshot, read_snapshot, write_requests
from ktaskfs.span import Node
from ktaskfs.tasks.record import Record, snapshot_from_json, snapshot_to_json
from ktaskfs.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

    from ktaskfs.operations.base.operation import Operation
    from ktaskfs.operations.base.parameters import Parameter, TaskParameters


class State(StrEnum):
    """The states of ``tasks/NAME/state``."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


WORKING: Final = frozenset({State.RUNNING, State.PAUSED})
"""Its worker was let go, and outlives the daemon."""
ACTIVE: Final = WORKING | {State.STARTING}
ENDED: Final = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.INTERRUPTED})
RESUMABLE: Final = frozenset({State.FAILED, State.CANCELLED, State.INTERRUPTED})
PHASE_STATES: Final = {Phase.DONE: State.DONE, Phase.FAILED: State.FAILED, Phase.CANCELLED: State.CANCELLED}
"""What a worker's last word means; without one it was interrupted."""

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
"""What a task reports that has no worker yet."""


@dataclass(frozen=True)
class History:
    """What a task is to do, and what earlier runs of it came to."""

    operation: Operation[Any] | None
    texts: Mapping[str, str]
    base: int
    remaining: tuple[Node, ...] | None
    baseline: Baseline | None
    planned: int
    final: Snapshot | None
    result: str


@dataclass(frozen=True)
class WorkerHandle:
    """The process that runs a task: known by its pidfd, and by pid and start time (ticks) to a later daemon.

    ``ticket`` is what the launcher knows it by, None for one that an earlier daemon launched.
    """

    pid: int
    start_time: int
    pidfd: int
    page: int
    shape: Shape
    ticket: int | None = None

    def wake(self) -> None:
        """Have the worker read its requests; one that has just ended does not mind."""
        self.signal(signal.SIGUSR1)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal through the pidfd; nothing happens if it has ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Close the descriptors; the process goes on."""
        os.close(self.pidfd)
        os.close(self.page)


class Task:
    """A task. Only the trio thread touches it; everything that shows it asks it anew.

    operation:  None while an empty task (mkdir) has not been told.
    texts:      its parameters as canonical text, those that were given.
    planned:    units of this run, as its worker announced them before it began.
    base:       units that earlier runs of a resumed task had done.
    baseline:      what they rest on, from the first start on.
    worker:     from the fork until the end is known.
    final:      the last snapshot of the worker, once it has ended.
    forgotten:  it is in no table any more; whoever still has one of its files open gets nothing from it.
    """

    def __init__(self, number: int, name: str, uid: int, gid: int, *, created_ns: int | None = None) -> None:
        self.number = number
        self.name = name
        self.uid = uid
        self.gid = gid
        self.created_ns = time.time_ns() if created_ns is None else created_ns
        self.operation: Operation[Any] | None = None
        self.texts: dict[str, str] = {}
        self.state = State.NEW
        self.requests = Requests()
        self.remaining: tuple[Node, ...] | None = None
        self.base = 0
        self.baseline: Baseline | None = None
        self.planned = 0
        self.worker: WorkerHandle | None = None
        self.final: Snapshot | None = None
        self.result = ""
        self.forgotten = False
        self._changed = trio.Event()

    def __repr__(self) -> str:
        return f"<Task {self.name} {self.state}>"

    def define(self, operation: Operation[Any], texts: Mapping[str, str]) -> None:
        """Say what an empty task is to do.

        Texts that were set before stand where ``texts`` does not name them, and the operation has such a parameter.
        """
        self.require({State.NEW}, "a spec")
        self.operation = operation
        known = {each.name for each in self.parameters()}
        self.texts = {**{name: text for name, text in self.texts.items() if name in known}, **texts}

    def set_parameter(self, parameter: Parameter, text: str) -> None:
        """Set one parameter of a task that has not started; raises InvalidValue, WrongState."""
        self.require({State.NEW}, f"setting {parameter.name}")
        self.set_text(parameter, text)

    def set_text(self, parameter: Parameter, text: str) -> None:
        """Set a parameter, or what is shown where none was given to have none; raises InvalidValue."""
        if text == parameter.kind.absent and parameter.default is None and not parameter.required:
            self.texts.pop(parameter.name, None)
        else:
            self.texts[parameter.name] = parameter.kind.format(parameter.kind.parse(text))

    def parameter_text(self, parameter: Parameter) -> str:
        """The text of a parameter's file: what was given, or the default."""
        return self.texts.get(parameter.name, parameter.default_text())

    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters that this task can have: those of its operation."""
        return parameters_of(RangeParameters) if self.operation is None else self.operation.declared

    def parsed(self) -> TaskParameters:
        """The parameters as values; raises InvalidValue while something is missing."""
        if self.operation is None:
            raise InvalidValue("no operation is set (write its name to op, or a spec to control)")
        values: TaskParameters = parse_parameters(self.operation.parameters, self.texts)
        return values

    def require(self, states: Set[State], what: str) -> None:
        """Raise WrongState unless the task is in one of ``states``, TaskForgotten if it is in no table."""
        self.require_known()
        if self.state not in states:
            raise WrongState(f"{what} does not fit: task {self.name} is {self.state}")

    def require_known(self) -> None:
        """Raise TaskForgotten for a task that was removed."""
        if self.forgotten:
            raise TaskForgotten(f"task {self.name} was removed")

    def forget(self) -> None:
        """It is removed; whoever waits for a change is woken."""
        self.forgotten = True
        self.to(self.state)

    def snapshot(self) -> Snapshot:
        """What the worker reports now, or reported last."""
        if self.worker is not None:
            return read_snapshot(self.worker.page, self.worker.shape)
        return self.final or EMPTY

    @property
    def history(self) -> History:
        """What it has come to until now; assigning an earlier one takes back a start that failed."""
        return History(
            self.operation,
            dict(self.texts),
            self.base,
            self.remaining,
            self.baseline,
            self.planned,
            self.final,
            self.result,
        )

    @history.setter
    def history(self, history: History) -> None:
        self.operation, self.texts = history.operation, dict(history.texts)
        self.base, self.remaining, self.baseline = history.base, history.remaining, history.baseline
        self.planned, self.final, self.result = history.planned, history.final, history.result

    def rate_limit(self) -> int:
        """Units a second that it may do, 0 for no limit."""
        text = self.texts.get("rate_max", MAX)
        return 0 if text == MAX else parse_size(text)

    def total(self, snapshot: Snapshot) -> int:
        """Units of the whole task, with those that earlier runs had done."""
        return self.base + (snapshot.total or self.planned)

    def done(self, snapshot: Snapshot) -> int:
        """Units finished, in all runs."""
        return self.base + snapshot.done

    def record(self) -> Record:
        """What a successor of this daemon must know."""
        worker = self.worker
        return Record(
            task=self.number,
            name=self.name,
            uid=self.uid,
            gid=self.gid,
            operation=None if self.operation is None else self.operation.name,
            parameters=self.texts,
            state=self.state,
            created_ns=self.created_ns,
            pid=None if worker is None else worker.pid,
            start_time=None if worker is None else worker.start_time,
            shape=None if worker is None else (worker.shape.slots, worker.shape.nodes),
            remaining=None if self.remaining is None else [(node.start, node.end, node.nid) for node in self.remaining],
            base=self.base,
            baseline=None if self.baseline is None else asdict(self.baseline),
            final=None if self.final is None else snapshot_to_json(self.final),
            result=self.result,
        )

    @classmethod
    def from_record(cls, record: Record, operations: Mapping[str, Operation[Any]]) -> Task:
        """The inverse, without the worker.

        Raises InvalidValue if nobody knows its operation, or reads its parameters, any more; ValueError for a state
        that is none.
        """
        task = cls(record.task, record.name, record.uid, record.gid, created_ns=record.created_ns)
        if record.operation is not None:
            task.operation = operations.get(record.operation)
            if task.operation is None:
                raise InvalidValue(f"there is no operation {record.operation}")
        task.texts = dict(record.parameters)
        for each in task.parameters():
            if each.name in task.texts:
                each.kind.parse(task.texts[each.name])
        task.state = State(record.state)
        if record.remaining is not None:
            task.remaining = tuple(Node(start, end - start, nid) for start, end, nid in record.remaining)
        task.planned = sum(node.size for node in task.remaining or ())
        task.base = record.base
        task.baseline = None if record.baseline is None else Baseline.from_fields(record.baseline)
        task.final = None if record.final is None else snapshot_from_json(record.final)
        task.result = record.result
        return task

    def ask(self, requests: Requests) -> None:
        """Put new wishes in force; a worker is woken only if there is a change.

        Raises TargetError if its page cannot be written, and the old wishes stand.
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
        """Change the state, and wake whoever waits for a change."""
        self.state = state
        self._changed.set()
        self._changed = trio.Event()

    async def changed(self) -> None:
        """Return after the next change of state, or when it is forgotten."""
        await self._changed.wait()
