"""Some thousand writes to control files that are made at random; and that the fuzzer notices faults."""

from __future__ import annotations

import contextlib
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import pytest

from ktaskfs.errors import InvalidValue, SpecError
from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.base.parameters import Kind, TaskParameters, parameter
from ktaskfs.tasks.spec import parse_spec
from ktaskfs.units import BYTES
from tests.fuzz import batch
from tests.fuzz.batch import Guard, TooSlow, fault_of, shortened
from tests.fuzz.checks import KINDS, OPERATIONS, Checker
from tests.fuzz.maker import Maker
from tests.fuzz.values import GOOD, POOLS
from tests.support.daemon import ROOT
from tests.support.shell import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktaskfs.operations.base.plan import Plan, Preparation

FOUND: Final = (
    b"",
    b"clear path=" + b"\\ " * 32000,
    b"clear path=a nodes=" + b"0-1023," * 9000,
    b"[" * 65536,
    b'{"op": "copy", "source": "\'\'\'", "path": "' + b"'" * 4094 + b'"}',  # as words it has too many quotes
)
"""Writes for which something did not hold once, and those that a faulty parser would take longest for."""


def test_some_thousand_writes() -> None:
    outcome = run(sys.executable, "-m", "tests.fuzz", "--specs", "3000", "--seed", "1", cwd=ROOT)
    assert (outcome.status, outcome.out.splitlines()[-1]) == (0, "Nothing was broken."), outcome
    counts = dict(line.split(": ") for line in outcome.out.splitlines() if line[:1] in "warv" and ": " in line)
    assert int(counts["writes"]) == 3000
    assert int(counts["accepted"]) > 400
    assert int(counts["refused"]) > 1000


@pytest.mark.parametrize("data", FOUND)
def test_what_was_found(data: bytes) -> None:
    Checker().check(data)


def test_the_same_seed_makes_the_same_writes() -> None:
    one, other, third = Maker("1"), Maker("1"), Maker("2")
    texts = [one.write() for _ in range(500)]
    assert texts == [other.write() for _ in range(500)]
    assert texts != [third.write() for _ in range(500)]


def test_every_operation_is_accepted_with_some_of_each_of_its_parameters() -> None:
    missing = {(name, each.name) for name, known in OPERATIONS.items() for each in known.declared}
    maker = Maker("all")
    for _ in range(20000):
        with contextlib.suppress(SpecError):
            found = parse_spec(maker.spec(), OPERATIONS)
            values = {
                each.name for each in found.operation.declared if getattr(found.parameters, each.name) != each.default
            }
            missing -= {(found.operation.name, name) for name in values}
        if not missing:
            break
    assert not missing


def test_every_kind_of_values_has_some_near_its_limits() -> None:
    for kind in KINDS:
        kind.parse(GOOD.get(kind.name) or kind.name.split("|")[0])
        assert kind.name in POOLS or "|" in kind.name, f"add values of {kind.name} to POOLS and GOOD"


# ---- what is broken is found ----


def _crash(text: str) -> int:
    raise ZeroDivisionError


def _words_of_two_lines(text: str) -> int:
    raise InvalidValue("one\ntwo")


def _unusual(text: str) -> int:
    raise InvalidValue("no", errno=5)


def _one_or_true(text: str) -> int:
    return True if text == "1" else 1


def _never(text: str) -> int:
    while True:
        pass


@pytest.mark.parametrize(
    ("parse", "write", "words"),
    [
        (_crash, str, "ZeroDivisionError in _crash"),
        (_words_of_two_lines, str, "not printable"),
        (_unusual, str, "errno 5"),
        (int, lambda value: str(value + 1), "as JSON it is another one"),
        (_one_or_true, str, "no fixed point"),
        (_never, str, "TooSlow"),
    ],
    ids=["exception", "lines", "errno", "another value", "no fixed point", "endless"],
)
def test_faults_are_noticed(
    parse: Callable[[str], int], write: Callable[[int], str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "CPU_TIME_MAX", 0.05)
    checker = Checker(MappingProxyType({"odd": operation_of(Kind("odd", parse, write))}))
    guard = Guard()
    with guard.watching():
        fault = fault_of(lambda: checker.check(b"odd x=7 nice=3"))
    assert words in fault


def test_faults_of_a_value_are_noticed() -> None:
    for parse, words in ((_crash, "ZeroDivisionError"), (_one_or_true, "no fixed point"), (_unusual, "errno 5")):
        kind = Kind("odd", parse, str)
        assert words in fault_of(lambda: Checker().check_value(kind, "7"))  # noqa: B023 -- called at once


def operation_of(kind: Kind[int]) -> Operation[Any]:
    """An operation with one parameter ``x`` of that kind."""

    class OddParameters(TaskParameters):
        x: int | None = parameter(kind, "", default=None)

    class Odd(Operation[TaskParameters]):
        name = "odd"
        description = "Is broken."
        units = BYTES
        parameters = OddParameters

        def prepare(self, preparation: Preparation[TaskParameters]) -> Plan:
            raise AssertionError("a spec is read without preparing anything")

    return Odd()


def test_a_fault_is_told_with_the_shortest_write() -> None:
    checker = Checker(MappingProxyType({"odd": operation_of(Kind("odd", _crash, str))}))
    data = b"odd nice=3 'x=7777' chunk=64K\n" + b"odd nice=5\n" * 40
    fault = fault_of(lambda: checker.check(data))
    short = shortened(data, fault, checker, Guard())
    assert fault_of(lambda: checker.check(short)) == fault
    assert short in (b"odd x=", b"odd 'x='")


def test_many_checks_may_take_longer_than_one() -> None:
    guard = Guard()
    for _ in range(3):
        guard.number += 1
        guard._tick(0, None)
    with pytest.raises(TooSlow):
        guard._tick(0, None)
