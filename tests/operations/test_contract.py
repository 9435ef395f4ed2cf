"""The contract of every operation. New operations are included; the tests read from the declaration what an operation
does (``tests/operations/contract.py``).

A new family adds its example to EXAMPLES in contract.py.
"""

from __future__ import annotations

from os import mkfifo
from typing import TYPE_CHECKING

from ktaskfs.errors import NotSupported
from tests.operations.contract import (
    ALL,
    EXAMPLES,
    OPERATIONS,
    descriptors,
    every,
    every_path,
    family,
    is_shared,
    paths,
    refusal,
    said,
    specs,
    state,
)
from tests.support.as_caller import as_nobody

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Runner


def test_every_family_has_an_example() -> None:
    assert {family(name) for name in ALL} == set(EXAMPLES)


@every
def test_the_example_runs_and_leaves_no_descriptor(runner: Runner, texts: dict[str, str], name: str) -> None:
    before = descriptors()
    runner.run(name, **texts)
    assert descriptors() == before


@every
def test_what_never_starts_changes_nothing(runner: Runner, texts: dict[str, str], ground: Path, name: str) -> None:
    before = state(ground, name)
    for spec in specs(name, texts, ground):
        runner.prepare(name, **spec).abort()
        assert state(ground, name) == before


@every
def test_undo_is_refused_with_the_declared_reason(
    runner: Runner, texts: dict[str, str], ground: Path, name: str
) -> None:
    reason = OPERATIONS[name].no_undo
    expected = (NotSupported.__name__, "EOPNOTSUPP", f"undo=1: {reason}") if reason else None
    before = state(ground, name)
    for spec in specs(name, texts, ground):
        assert said(refusal(runner, name, spec | {"undo": "1"})) == expected
        assert state(ground, name) == before


@every
def test_a_node_that_is_not_there(runner: Runner, texts: dict[str, str], ground: Path, name: str) -> None:
    before = state(ground, name)
    for spec in specs(name, texts, ground):
        kind, number, words = said(refusal(runner, name, spec | {"nodes": "0,1000"})) or ("", "", "")
        assert (kind, number) == ("InvalidValue", "EINVAL")
        assert words == "node 1000 does not exist or has no memory"
        assert state(ground, name) == before


@every_path
def test_a_target_that_is_missing(
    runner: Runner, texts: dict[str, str], ground: Path, name: str, parameter: str
) -> None:
    """It is created if it is ``path`` and the operation creates that, but no directory for it."""
    before = state(ground, name)
    for missing in (ground / "no" / "file", ground / "missing"):
        *_, spec = specs(name, texts, ground)
        found = refusal(runner, name, spec | {parameter: str(missing)})
        made = missing.parent == ground and parameter == "path" and OPERATIONS[name].creates
        expected = None if made else ("TargetError", "ENOENT", f"open {missing}: No such file or directory")
        assert said(found) == expected
        assert state(ground, name) == before


@every_path
def test_a_target_that_the_caller_may_not_open(
    runner: Runner, texts: dict[str, str], ground: Path, name: str, parameter: str
) -> None:
    """For its own mode, or for its directory's, in which no file is made either."""
    (ground / "closed").mkdir(0o700)
    (ground / "closed" / "file").touch(0o777)
    for each in paths(name):
        (ground / each).chmod(0o600 if each == parameter else 0o777)
    inner = {each: f"/{each}" for each in paths(name)}
    tried = (f"/{parameter}", "/closed/file", "/closed/new")
    before = state(ground, name)

    def attempts() -> list[object]:
        return [said(refusal(runner, name, texts | inner | {parameter: path})) for path in tried]

    words = [EXAMPLES[family(name)].closed.format(tried[0]), *(f"open {path}: Permission denied" for path in tried[1:])]
    expected = [["TargetError", "EACCES", each] for each in words]
    assert as_nobody(ground, attempts) == expected
    assert state(ground, name) == before


@every_path
def test_a_target_that_is_no_file(
    runner: Runner, texts: dict[str, str], ground: Path, name: str, parameter: str
) -> None:
    mkfifo(ground / "fifo")
    before = state(ground, name)
    for path in (str(ground / "fifo"), "/dev/null"):
        expected = {("TargetError", "EINVAL", EXAMPLES[family(name)].not_that.format(path))}
        if is_shared(name):  # it may be for the other
            expected |= {("TargetError", "EINVAL", each.not_that.format(path)) for each in EXAMPLES.values()}
            expected |= {("TargetError", "ENOTDIR", f"open {path}: Not a directory")}
        assert said(refusal(runner, name, texts | {parameter: path})) in expected
    assert state(ground, name) == before
