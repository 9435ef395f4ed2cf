"""A record, and its files in a state directory."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from ktaskfs.operations.base.resume import Baseline
from ktaskfs.progress import NodeProgress, Phase, Shape, Snapshot, ThreadProgress, ThreadState
from ktaskfs.span import Node
from ktaskfs.tasks.history import History
from ktaskfs.tasks.record import Record
from ktaskfs.tasks.task import Origin, State
from tests.tasks.house import OPERATIONS

if TYPE_CHECKING:
    from ktaskfs.tasks.state_directory import StateDirectory

FINAL = Snapshot(
    phase=Phase.FAILED,
    started_ns=5,
    ended_ns=2**63,
    total=100,
    errno=12,
    error_position=-1,
    message="no \u00e9",
    result_size=0,
    undone=False,
    nodes=(NodeProgress(0, 100, -1, 50),),
    threads=(ThreadProgress(0, 7, -1, ThreadState.ENDED, 1, 50, 9, 0, 40, 50),),
)
RECORD = Record(
    Origin(3, "vm0", 1, 2, created_ns=1),
    state=State.FAILED,
    history=History(
        operation=OPERATIONS["clear"],
        texts={"path": "/a b\n", "length": "64G", "nice": "3"},
        remaining=(Node(1, 1, -1),),
        base=50,
        baseline=Baseline({"path": (1, 2, 3)}, end=2, size=2, total=51),
        planned=1,
        final=FINAL,
        result=b"text\n",
        rights=0x21,
    ),
    pid=77,
    start_time=88,
    shape=Shape(2, 64),
)


def write_raw(state: StateDirectory, name: str, data: bytes) -> None:
    """A file of the directory, with any contents."""
    with open(os.path.join(state.path, name), "wb") as file:
        file.write(data)


def as_json(record: Record, **changes: Any) -> bytes:
    """A record as its file has it, with other ``changes``."""
    return json.dumps(record.to_json() | changes).encode()


def records(state: StateDirectory) -> list[Record]:
    """Every record that can be read."""
    return list(state.records(OPERATIONS))
