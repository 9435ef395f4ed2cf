"""Starts tasks, or finds existing ones of the same names."""

from __future__ import annotations

import errno
import os
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from ktaskfs.cli.follow import GONE
from ktaskfs.cli.specs import Spec, read_specs
from ktaskfs.errors import InvalidValue, NameTaken, Refused, TargetError

if TYPE_CHECKING:
    from ktaskfs.cli.mounted import Mounted

TRIES: Final = 10
"""How often a name may come, or go, between the look and the start."""
CHANGEABLE: Final = frozenset({"op", "name", "queue", "replace", "max_threads", "nice", "rate_max"})
"""Keys that say nothing of the work, or may have been changed since the start."""
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


def start(mounted: Mounted, text: str, if_exists: IfExists, *, plan: bool) -> list[str]:
    """The names of the tasks of the specs in ``text``. Raises KtaskfsError; then nothing was started."""
    if text.split() == [ALL]:
        raise InvalidValue(f"{ALL} is not a spec: use ktaskfs {ALL} NAME for one task, ktaskfs {ALL} '*' for all")
    if if_exists is IfExists.FAIL and not plan:
        return mounted.start(text)  # as it was written: so the caret is under what was written
    specs = [each.adding("plan") if plan else each for each in read_specs(text)]
    if if_exists is IfExists.REPLACE:
        specs = [each.adding("replace") if each.name is not None else each for each in specs]
    if if_exists in (IfExists.FAIL, IfExists.REPLACE):
        return mounted.start(_text(specs))
    return _start_or_join(mounted, specs, if_exists)


def _text(specs: list[Spec]) -> str:
    return "\n".join(each.text for each in specs)


def _start_or_join(mounted: Mounted, specs: list[Spec], if_exists: IfExists) -> list[str]:
    for attempt in range(TRIES):
        states = [None if each.name is None else _state_of(mounted, each.name) for each in specs]
        # A new task takes the name of a planned one.
        there = [each for each, state in zip(specs, states, strict=True) if state not in (None, "planned")]
        rest = [each for each in specs if each not in there]
        if if_exists is IfExists.RERUN:
            ended = [each for each in there if _state_of(mounted, each.name) not in AT_WORK]
            there = [each for each in there if each not in ended]
            rest = [each.adding("replace") if each in ended else each for each in specs if each not in there]
        for spec in there:
            _require_the_same(mounted, spec)
        try:
            started = mounted.start(_text(rest)) if rest else []
        except Refused as error:
            if error.errno != errno.EEXIST or attempt == TRIES - 1:
                raise
            continue
        joined = [each.name for each in there if each.name is not None]
        if if_exists is IfExists.RESUME:
            for name in joined:
                _resume(mounted, name)
        return joined + started
    raise AssertionError("the last try returns or raises")


def _state_of(mounted: Mounted, name: str | None) -> str | None:
    """The state of the task of that name; None if there is none."""
    try:
        return mounted.read(f"tasks/{name}/state").strip()
    except TargetError as error:
        if error.errno not in GONE:
            raise
        return None


def _resume(mounted: Mounted, name: str) -> None:
    if mounted.read(f"tasks/{name}/state").strip() not in TO_RESUME:
        return
    try:
        mounted.write(f"tasks/{name}/control", "resume")
    except Refused as error:
        if error.errno != errno.EBUSY:  # somebody else has just resumed it
            raise


def _require_the_same(mounted: Mounted, spec: Spec) -> None:
    """Raises NameTaken if the task of the spec's name does something else, or may: another user's path may lead to
    another file."""
    if spec.name is not None and not mounted.is_own(spec.name):
        raise NameTaken(f"the task {spec.name} exists already, and is another user's")
    wanted = {"plan": "0", **{key: value for key, value in spec.values.items() if key not in CHANGEABLE}}
    operation = mounted.read(f"tasks/{spec.name}/op").strip()
    if operation != spec.values["op"]:
        raise NameTaken(f"the task {spec.name} exists already, with the operation {operation}")
    for key, value in wanted.items():
        has = mounted.read(f"tasks/{spec.name}/{key}").rstrip("\n")
        if not _alike(has, value):
            raise NameTaken(f"the task {spec.name} exists already, with {key}={has}")


def _alike(one: str, other: str) -> bool:
    """Whether two texts of a parameter mean the same: a size, a path, or a word."""
    from ktaskfs.units import parse_size

    try:
        return parse_size(one) == parse_size(other)
    except InvalidValue:
        return one == other or (one.startswith("/") and one == os.path.abspath(other))
