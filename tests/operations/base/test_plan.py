"""A preparation closes each opened object exactly once, the last first, in any case."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import TargetError
from ktaskfs.operations.base.parameters import TaskParameters
from ktaskfs.operations.base.plan import Plan, Preparation
from ktaskfs.span import NO_NODE, Node
from tests.support.runner import not_begun

if TYPE_CHECKING:
    from ktaskfs.ktask import Outcome
    from tests.support.runner import Runner


class Thing:
    """Notes in ``log`` when it is closed."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name = name
        self._log = log

    def close(self) -> None:
        self._log.append(self._name)


def prepared(
    runner: Runner, log: list[str], parameters: TaskParameters, *, failing: bool = False, refused: bool = False
) -> Plan:
    """A plan with two open objects, whose ``finish`` notes the remaining units; ``refused``: there is none."""

    def finish(outcome: Outcome) -> str:
        log.append(f"left {sum(node.size for node in outcome.remaining())}")
        if failing:
            raise TargetError("cannot finish")
        return "result"

    with Preparation(runner.kernel, parameters, None) as preparation:
        preparation.keep(Thing("first", log))
        preparation.callback(log.append, "taken back")
        preparation.keep(Thing("last", log))
        if refused:
            raise TargetError("cannot open")
        control = preparation.control(
            lambda start, end: None, least=3, most=100, align=4, undo_func=lambda start, end: None
        )
        return preparation.plan([Node(0, 100, NO_NODE)], control, finish)


def test_a_failed_preparation_closes_everything(runner: Runner) -> None:
    log: list[str] = []
    with pytest.raises(TargetError, match="cannot open"):
        prepared(runner, log, TaskParameters(), refused=True)
    assert log == ["last", "taken back", "first"]


class Stuck(Thing):
    """Cannot be closed."""

    def close(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("ends", ["at the start", "at the end"])
def test_an_error_stays_the_reason_if_what_it_leaves_cannot_be_closed(runner: Runner, ends: str) -> None:
    def finish(outcome: Outcome) -> str:
        raise TargetError("cannot finish")

    def fail() -> None:
        log: list[str] = []
        with Preparation(runner.kernel, TaskParameters(), None) as preparation:
            preparation.keep(Stuck("", log))
            if ends == "at the start":
                raise TargetError("cannot open")
            control = preparation.control(lambda start, end: None, least=1, most=1)
            plan = preparation.plan([Node(0, 100, NO_NODE)], control, finish)
        plan.finish(not_begun(plan))

    with pytest.raises(TargetError) as caught:
        fail()
    assert caught.value.message == ("cannot open" if ends == "at the start" else "cannot finish")
    assert caught.value.__notes__ == ["undo failed: Input/output error"]


def test_abort_closes_everything(runner: Runner) -> None:
    log: list[str] = []
    plan = prepared(runner, log, TaskParameters())
    assert log == []
    plan.abort()
    assert log == ["last", "taken back", "first"]


@pytest.mark.parametrize("failing", [False, True])
def test_finish_gets_the_outcome_and_then_everything_is_closed(runner: Runner, failing: bool) -> None:
    log: list[str] = []
    plan = prepared(runner, log, TaskParameters(), failing=failing)
    if failing:
        with pytest.raises(TargetError, match="cannot finish"):
            plan.finish(not_begun(plan))
    else:
        assert plan.finish(not_begun(plan)) == "result"
    assert log == ["left 100", "last", "taken back", "first"]


def test_the_parameters_chunk_and_undo_are_applied(runner: Runner) -> None:
    control = prepared(runner, [], TaskParameters()).control
    assert (control.min_chunk_size, control.max_chunk_size, control.align) == (4, 100, 4)
    assert (control.undo_func, control.undo_failed) == (None, False)
    control = prepared(runner, [], TaskParameters(chunk=9, undo=True)).control
    assert (control.min_chunk_size, control.max_chunk_size, control.align) == (12, 100, 4)
    assert (control.undo_func is not None, control.undo_failed) == (True, True)
