"""Starts tasks, or finds existing ones of the same names."""

from __future__ import annotations

import errno
import os
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.cli.follow import GONE, STATUS_OF
from ktaskfs.cli.specs import CommandSpec, read_specs
from ktaskfs.cli.tables import rows
from ktaskfs.errors import InvalidValue, NameTaken, Refused, TargetError, WrongCommandLine

if TYPE_CHECKING:
    from ktaskfs.cli.mounted import Mounted

TRIES: Final = 10
"""How many times to try: the task of a name may come or go between the look and the start."""
CHANGEABLE: Final = frozenset({"op", "name", "queue", "replace", "max_threads", "nice", "rate_max"})
"""Keys that say nothing of the work, or may have been changed since the start."""
NOT_THE_WORK: Final = frozenset({"chunk"})
"""Keys that only say how to work: a spec without such a key accepts any value of it."""
ALL: Final = "cancel"
"""A command of ``tasks/control`` that is not a spec: it cancels all tasks of the user."""
TO_RESUME: Final = frozenset({"paused", "failed", "cancelled", "interrupted"})
AT_WORK: Final = frozenset({"queued", "starting", "running", "paused"})


class IfExists(StrEnum):
    """The handling of a spec whose name exists."""

    FAIL = "fail"
    JOIN = "join"
    RESUME = "resume"
    REPLACE = "replace"
    RERUN = "rerun"


class Started(NamedTuple):
    """The names of the tasks of specs, without those whose resume was refused: these have an error each."""

    names: list[str]
    refused: list[Refused | TargetError]


def start(mounted: Mounted, text: str, if_exists: IfExists, *, plan: bool) -> Started:
    """The tasks of the specs in ``text``. Raises KtaskfsError if none was started or resumed."""
    if text.split() == [ALL]:
        way = f"use ktaskfs {ALL} NAME for one task, ktaskfs {ALL} '*' for all"
        raise WrongCommandLine(f"{ALL} is not a spec: {way}")
    if if_exists is IfExists.FAIL and not plan:
        return Started(mounted.start(text), [])  # the unchanged text: the caret must be below the right word
    specs = [each.adding("plan") if plan else each for each in read_specs(text)]
    if if_exists is IfExists.REPLACE:
        specs = [each.adding("replace") if each.name is not None else each for each in specs]
    if if_exists in (IfExists.FAIL, IfExists.REPLACE):
        return Started(mounted.start(_text(specs)) if specs else [], [])
    return _start_or_join(mounted, specs, if_exists)


def taken_name(mounted: Mounted, text: str) -> str | None:
    """The first name in ``text``, refused with EEXIST, that a task has and keeps; None if a file is in the way."""
    for spec in read_specs(text):
        owner = None if spec.name is None else mounted.owner(spec.name)
        if owner is not None and owner != os.geteuid():
            return spec.name
        given_up = ("planned",) if spec.values.get("replace", "0") == "0" else STATUS_OF
        if owner is not None and _state_of(mounted, spec.name) not in (None, *given_up):
            return spec.name
    return None


def does_the_same(mounted: Mounted, text: str, name: str) -> bool:
    """Whether a task has that name, and does the work of the spec of that name in ``text``. Raises DaemonAway."""
    return any(each.name == name and _does(mounted, each) for each in read_specs(text))


def _does(mounted: Mounted, spec: CommandSpec) -> bool:
    for _ in range(TRIES):
        try:
            _require_the_same(mounted, spec)
        except TargetError:  # it was removed just now, and another may have the name
            continue
        except (NameTaken, InvalidValue):
            return False
        return True
    return False


def _text(specs: list[CommandSpec]) -> str:
    return "\n".join(each.text for each in specs)


def _start_or_join(mounted: Mounted, specs: list[CommandSpec], if_exists: IfExists) -> Started:
    for attempt in range(TRIES):
        states = [None if each.name is None else _state_of(mounted, each.name) for each in specs]
        # A new task takes the name of a planned one.
        there = [each for each, state in zip(specs, states, strict=True) if state not in (None, "planned")]
        rest = [each for each in specs if each not in there]
        if if_exists is IfExists.RERUN:
            ended = [each for each in there if _state_of(mounted, each.name) not in AT_WORK]
            there = [each for each in there if each not in ended]
            rest = [each.adding("replace") if each in ended else each for each in specs if each not in there]
        try:
            for spec in there:
                _require_the_same(mounted, spec)
            started = mounted.start(_text(rest)) if rest else []
        except (Refused, TargetError) as error:
            has_changed = (errno.EEXIST,) if isinstance(error, Refused) else GONE
            if error.errno not in has_changed or attempt == TRIES - 1:
                raise
            continue
        joined = [each.name for each in there if each.name is not None]
        return _resumed(mounted, joined, started) if if_exists is IfExists.RESUME else Started(joined + started, [])
    raise AssertionError("the last try returns or raises")


def _state_of(mounted: Mounted, name: str | None) -> str | None:
    """The state of the task of that name; None if there is none."""
    if name in (None, "control") or "/" in name or not name.isprintable():  # the daemon says what is wrong with it
        return None
    try:
        return mounted.read(f"tasks/{name}/state").strip()
    except TargetError as error:
        if error.errno not in GONE:
            raise
        return None


def _resumed(mounted: Mounted, joined: list[str], started: list[str]) -> Started:
    """Resume the tasks that existed. The others are at work, so they are followed even if a resume is refused."""
    names, refused = [], []
    for name in joined:
        try:
            _resume(mounted, name)
            names.append(name)
        except (Refused, TargetError) as error:  # or it was removed just now
            refused.append(error)
    if refused and not names + started:
        raise refused[0]
    return Started(names + started, refused)


def _resume(mounted: Mounted, name: str) -> None:
    if mounted.read(f"tasks/{name}/state").strip() not in TO_RESUME:
        return
    try:
        mounted.write(f"tasks/{name}/control", "resume")
    except Refused as error:
        if error.errno != errno.EBUSY:  # somebody else has just resumed it
            raise


def _require_the_same(mounted: Mounted, spec: CommandSpec) -> None:
    """Raises NameTaken if the task of the spec's name does other work, also if it does only more or less.

    Another user's task counts as other work: that user's path may lead to another file. Raises InvalidValue for a key
    that the operation does not have, TargetError for a task that was removed.
    """
    from ktaskfs.cli.meaning import alike

    owner = None if spec.name is None else mounted.owner(spec.name)
    if owner not in (None, os.geteuid()):  # None: it was removed just now, as the next read says
        raise NameTaken(f"the task {spec.name} exists already, and is another user's")
    operation = mounted.read(f"tasks/{spec.name}/op").strip()
    if operation != spec.values.get("op"):
        raise NameTaken(f"the task {spec.name} exists already, with the operation {operation}")
    declared = {row["name"]: row for row in rows(mounted.read(f"operations/{operation}/parameters"))}
    for key in spec.values.keys() - {"op", *declared}:
        raise InvalidValue(f"{operation} has no parameter {key!a}")
    for key, row in declared.items():
        given, default = spec.values.get(key), row["default"]
        if key in CHANGEABLE or (given is None and key in NOT_THE_WORK):
            continue
        has = mounted.read(f"tasks/{spec.name}/{key}").rstrip("\n")
        same = has in (default, *default.split("|")) if given is None else alike(has, given, row["type"])
        if not same:
            raise NameTaken(f"the task {spec.name} exists already, with {key}={has}")
