"""The record of a task for a later daemon, and its JSON format."""

from __future__ import annotations

from dataclasses import fields as fields_of
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ktaskfs.errors import InvalidValue
from ktaskfs.operations.base.parameters import TaskParameters
from ktaskfs.operations.base.resume import Baseline
from ktaskfs.progress import FoundWhy, NodeProgress, Phase, Shape, Snapshot, ThreadProgress, ThreadState
from ktaskfs.span import Node
from ktaskfs.tasks.history import ALL_CAPABILITIES, History
from ktaskfs.tasks.kept_caller import KeptCaller
from ktaskfs.tasks.task import Origin, State, Task

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import UnionType

    from ktaskfs.operations.base.operation import SpecWord

VERSION: Final = 7
"""Version 1 had ``basis`` in place of ``baseline``. ``rights`` came with 3, ``caller`` with 4, ``tree`` with 5,
``used`` with 6, ``boot`` with 7."""


class Record(NamedTuple):
    """The data needed to show or adopt a task after the daemon's death.

    pid, start_time: of its worker, None when there is none; start_time in clock ticks after boot, 0 if unknown.
    shape:           slots and ranges of its page.
    caller:          the caller of its worker, if it is queued.
    """

    origin: Origin
    state: State
    history: History
    pid: int | None = None
    start_time: int | None = None
    shape: Shape | None = None
    caller: KeptCaller | None = None

    @classmethod
    def of(cls, task: Task) -> Record:
        """The record of ``task`` as it is now."""
        worker = task.worker
        return cls(
            origin=task.origin,
            state=task.state,
            history=task.history,
            pid=None if worker is None else worker.pid,
            start_time=None if worker is None else worker.start_time,
            shape=None if worker is None else worker.shape,
            caller=task.caller,
        )

    def after_boot(self) -> Record:
        """The record after a boot: none of its processes lives."""
        return self._replace(pid=None, caller=None if self.caller is None else self.caller.after_boot())

    def make_task(self) -> Task:
        """The task, without its worker."""
        task = Task(self.origin)
        task.state = self.state
        task.history = self.history
        task.caller = self.caller
        return task

    def to_json(self) -> dict[str, Any]:
        """The fields for writing: ranges are (start, end, nid)."""
        history, origin = self.history, self.origin
        return {
            "version": VERSION,
            "task": origin.number,
            "name": origin.name,
            "uid": origin.uid,
            "gid": origin.gid,
            "operation": None if history.operation is None else history.operation.name,
            "rights": history.rights,
            "parameters": dict(history.texts),
            "used": dict(history.used),
            "state": self.state,
            "created_ns": origin.created_ns,
            "pid": self.pid,
            "start_time": self.start_time,
            "remaining": history.remaining and [(node.start, node.end, node.nid) for node in history.remaining],
            "base": history.base,
            "baseline": history.baseline and history.baseline._asdict(),
            "boot": history.boot,
            "caller": self.caller and self.caller.to_fields(),
            "shape": self.shape and (self.shape.slots, self.shape.nodes),
            "final": history.final and _snapshot_fields(history.final),
            "result": history.result.decode(),
        }


_TYPES: Final[Mapping[str, type | UnionType]] = {
    **dict.fromkeys(("task", "uid", "gid", "created_ns", "rights", "base"), int),
    **dict.fromkeys(("name", "state", "result", "boot"), str),
    "operation": str | None,
    **dict.fromkeys(("pid", "start_time"), int | None),
    **dict.fromkeys(("parameters", "used"), dict),
    **dict.fromkeys(("remaining", "shape"), list | None),
    **dict.fromkeys(("baseline", "final", "caller"), dict | None),
}
_MOST: Final = 1 << 20
"""Upper bounds of slots and ranges."""


def record_from_json(fields: dict[str, Any], task: int, operations: Mapping[str, SpecWord]) -> Record:
    """The record of ``task`` from its fields, of any version until now.

    Raises InvalidValue for an unknown operation or parameter, and ValueError, KeyError, TypeError or AttributeError for
    invalid data.
    """
    version = fields.pop("version")
    if version not in range(1, VERSION + 1):
        raise ValueError("it has another version")
    if version < 2:
        fields["baseline"] = fields.pop("basis")
    if version < 3:
        fields["rights"] = ALL_CAPABILITIES
    if version < 4:
        fields["caller"] = None
    if version < 5 and fields["baseline"] is not None:
        fields["baseline"]["tree"] = 0
    if version < 6:
        fields["used"] = {}
    if version < 7:
        fields["boot"] = ""
    for name, kind in _TYPES.items():
        if not isinstance(fields[name], kind):
            raise TypeError(f"{name} is of the wrong type")
    if unknown := fields.keys() - _TYPES.keys():
        raise ValueError(f"unknown field {min(unknown)}")
    if fields["task"] != task or (fields["pid"] is not None and fields["pid"] <= 0):
        raise ValueError("a number is out of its range")
    return Record(
        Origin(task, *(fields[name] for name in ("name", "uid", "gid", "created_ns"))),
        state=State(fields["state"]),
        history=_history(fields, operations),
        shape=None if fields["shape"] is None else _shape(fields["shape"]),
        pid=fields["pid"],
        start_time=fields["start_time"],
        caller=None if fields["caller"] is None else KeptCaller.from_fields(fields["caller"]),
    )


def _history(fields: Mapping[str, Any], operations: Mapping[str, SpecWord]) -> History:
    operation = None
    if fields["operation"] is not None:
        operation = operations.get(fields["operation"])
        if operation is None:
            raise InvalidValue(f"there is no operation {fields['operation']}")
    texts, used = fields["parameters"], fields["used"]
    if not all(isinstance(each, str) for each in (*texts.values(), *used.values())):
        raise TypeError("a parameter is of the wrong type")
    for each in TaskParameters.declared if operation is None else operation.declared:
        if each.name in texts:
            each.kind.parse(texts[each.name])
    remaining = None if fields["remaining"] is None else tuple(_node(each) for each in fields["remaining"])
    return History(
        operation=operation,
        rights=fields["rights"],
        texts=texts,
        used=used,
        remaining=remaining,
        base=fields["base"],
        baseline=None if fields["baseline"] is None else Baseline.from_fields(fields["baseline"]),
        boot=fields["boot"],
        planned=sum(node.size for node in remaining or ()),
        final=None if fields["final"] is None else _snapshot(fields["final"]),
        result=fields["result"].encode(),
    )


def _node(numbers: Any) -> Node:
    if len(numbers) != 3 or not all(isinstance(each, int) for each in numbers):
        raise ValueError("remaining is not a list of ranges")
    start, end, nid = numbers
    return Node(start, end - start, nid)


def _shape(numbers: list[Any]) -> Shape:
    if not (len(numbers) == 2 and all(0 <= each < _MOST for each in numbers)):
        raise ValueError("shape is not a pair of sizes")
    return Shape(*numbers)


def _snapshot_fields(snapshot: Snapshot) -> dict[str, Any]:
    """The inverse of ``_snapshot``."""
    fields = {each.name: getattr(snapshot, each.name) for each in fields_of(Snapshot)}
    nodes, threads = ([each._asdict() for each in part] for part in (snapshot.nodes, snapshot.threads))
    return fields | {"nodes": nodes, "threads": threads}


def _snapshot(fields: dict[str, Any]) -> Snapshot:
    nodes = tuple(NodeProgress(**each) for each in fields["nodes"])
    threads = tuple(ThreadProgress(**each | {"state": ThreadState(each["state"])}) for each in fields["threads"])
    why = FoundWhy(fields.get("found_why", FoundWhy.UNKNOWN))  # older records have none
    phase = Phase(fields["phase"])
    return Snapshot(**fields | {"phase": phase, "found_why": why, "nodes": nodes, "threads": threads})
