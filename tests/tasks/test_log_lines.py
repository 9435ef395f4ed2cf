"""Log lines about the ends and refusals of tasks."""

from __future__ import annotations

import errno
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from ktaskfs.errors import TargetError
from ktaskfs.operations.base.registry import find_operations
from ktaskfs.tasks.log_lines import log_end, log_refusal
from ktaskfs.tasks.task import EMPTY, Origin, State, Task

if TYPE_CHECKING:
    from ktaskfs.progress import Snapshot

LOG: Final = logging.getLogger("test")
SECOND: Final = 10**9
SIZE: Final = 40 << 20


def made(operation: str = "clear", **texts: str) -> Task:
    task = Task(Origin.now(1, "vm1", 1000, 1000))
    task.define(find_operations()[operation], texts or {"path": "/dev/hugepages/vm1"})
    return task


def ended(seconds: float, message: str = "", number: int = 0) -> Snapshot:
    """A run of nothing but the time it took."""
    began = 7 * SECOND
    return replace(EMPTY, started_ns=began, ended_ns=began + int(seconds * SECOND), message=message, errno=number)


def with_base(task: Task, done: int, planned: int) -> Task:
    """The task as after an earlier run that did ``done``, with ``planned`` left."""
    task.history = task.history._replace(base=done, planned=planned)
    return task


def test_what_how_much_and_how_long(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_end(LOG, with_base(made(), SIZE, 0), State.DONE, ended(0.2))
    (record,) = caplog.records
    assert record.getMessage() == "task vm1: clear /dev/hugepages/vm1 40M done in 0.2s"
    assert record.levelno == logging.INFO
    fields = {name: value for name, value in vars(record).items() if name.startswith(("KTASK_", "ERRNO"))}
    assert fields == {
        "KTASK_NAME": "vm1",
        "KTASK_OPERATION": "clear",
        "KTASK_UID": 1000,
        "KTASK_STATE": "new",
        "KTASK_PATH": "/dev/hugepages/vm1",
        "KTASK_DONE": SIZE,
        "KTASK_TOTAL": SIZE,
        "KTASK_USEC": 200_000,
    }


@pytest.mark.parametrize(
    ("state", "level"),
    [
        (State.FAILED, logging.WARNING),
        (State.INTERRUPTED, logging.WARNING),
        (State.CANCELLED, logging.INFO),
        (State.PLANNED, logging.INFO),
    ],
)
def test_failures_are_warnings(caplog: pytest.LogCaptureFixture, state: State, level: int) -> None:
    with caplog.at_level(logging.INFO):
        log_end(LOG, with_base(made(), SIZE // 4, SIZE - SIZE // 4), state, ended(61, "no more memory", errno.ENOMEM))
    (record,) = caplog.records
    text = f"task vm1: clear /dev/hugepages/vm1 40M {state} in 61.0s, 10M done: no more memory"
    assert (record.getMessage(), record.levelno) == (text, level)
    assert vars(record)["ERRNO"] == errno.ENOMEM


def test_a_path_cannot_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_end(LOG, made(path="/a\ntask root: done"), State.DONE, ended(1))
    assert caplog.records[0].getMessage() == "task vm1: clear /a\\012task root: done done in 1.0s"
    assert "\n" not in vars(caplog.records[0])["KTASK_PATH"]


def test_pages_and_processes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_end(LOG, with_base(made("survey", pid="4711"), 3, 0), State.DONE, ended(1))
    assert caplog.records[0].getMessage() == "task vm1: survey pid=4711 3 pages done in 1.0s"


@pytest.mark.parametrize(("plan", "level"), [("0", logging.WARNING), ("1", logging.INFO)])
def test_a_refused_start_is_a_warning_unless_it_only_asked(
    caplog: pytest.LogCaptureFixture, plan: str, level: int
) -> None:
    with caplog.at_level(logging.INFO):
        log_refusal(LOG, made(path="/f", plan=plan), TargetError("/f: too little", errno=errno.ENOMEM))
    (record,) = caplog.records
    assert (record.getMessage(), record.levelno) == ("task vm1: clear /f refused (ENOMEM): /f: too little", level)
    assert (vars(record)["KTASK_STATE"], vars(record)["ERRNO"]) == ("refused", errno.ENOMEM)
