"""``ktaskfs cancel``, ``pause``, ``resume``, ``kill`` and ``set``: verbs and parameters for tasks by name or glob."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING

from ktaskfs.cli.complain import say
from ktaskfs.cli.mounted import Mounted
from ktaskfs.cli.names import FORBIDDEN, GLOB, matching
from ktaskfs.cli.orders import ASSIGNMENT
from ktaskfs.errors import InvalidValue, KtaskfsError, NoSuchTask, Refused, TargetError, WrongCommandLine, WrongState

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping


def act(given: argparse.Namespace) -> int:
    """Write the verb ``given.command`` to the control files of tasks; 1 if one does not accept it."""
    verb = given.command
    mounted = Mounted(given.mount)
    targets = _targets(mounted, given.name, lambda verbs: verb in verbs, f"accepts {verb}")
    return _each(given, targets, lambda name: mounted.write(f"tasks/{name}/control", verb))


def assign(given: argparse.Namespace) -> int:
    """Set parameters of tasks; 1 if one of them cannot be set. Raises WrongCommandLine."""
    patterns = [given.name[0], *(word for word in given.name[1:] if ASSIGNMENT.fullmatch(word) is None)]
    matches = (ASSIGNMENT.fullmatch(word) for word in given.name[1:])
    values = {match[1]: match[2] for match in matches if match is not None}
    if not values:
        raise WrongCommandLine("nothing to set: write KEY=VALUE after the names")
    if empty := next((key for key, value in values.items() if not value.strip()), ""):
        raise WrongCommandLine(f"{empty} has no value")
    if "control" in values:
        raise WrongCommandLine("control is not a parameter: use ktaskfs cancel, pause, resume or kill")
    mounted = Mounted(given.mount)
    targets = _targets(mounted, patterns, lambda verbs: verbs != [], "can be set")
    return _each(given, targets, lambda name: _set(mounted, name, values))


def _set(mounted: Mounted, name: str, values: Mapping[str, str]) -> None:
    """Raises InvalidValue for a parameter that the task does not have, or a value that it does not take."""
    for key, value in values.items():
        try:
            mounted.write(f"tasks/{name}/{key}", value)
        except (Refused, TargetError) as error:
            if error.errno == errno.ENOENT and name in mounted.directories("tasks"):
                raise InvalidValue(f"there is no parameter {key!r}") from error
            if error.errno == errno.EINVAL:
                raise InvalidValue(f"{key}: {error.message}") from error
            raise


def _targets(
    mounted: Mounted, patterns: list[str], fits: Callable[[list[str]], bool], what: str
) -> Iterator[tuple[str, KtaskfsError | None]]:
    """The names, or the error for a pattern without one. A glob selects only tasks whose current verbs fit."""
    present = mounted.directories("tasks")
    seen: set[str] = set()
    for pattern in patterns:
        try:
            found = matching(present, pattern)
        except NoSuchTask as error:
            yield pattern, error
            continue
        if GLOB.search(pattern):
            found = [name for name in found if fits(_verbs(mounted, name))]
            if not found:
                yield pattern, WrongState(f"no task that matches {pattern} {what} now")
        yield from ((name, None) for name in found if name not in seen)
        seen.update(found)


def _verbs(mounted: Mounted, name: str) -> list[str]:
    """The verbs that the task accepts now; none if it is another user's, or was removed."""
    try:
        return mounted.read(f"tasks/{name}/control").split()
    except TargetError as error:
        if error.errno in (*FORBIDDEN, errno.ENOENT, errno.ENODEV):
            return []
        raise


def _each(
    given: argparse.Namespace, targets: Iterator[tuple[str, KtaskfsError | None]], do: Callable[[str], None]
) -> int:
    """Apply it to each, print the names of successes, report failures, and go on."""
    status = 0
    for name, wrong in targets:
        error = wrong
        if error is None:
            try:
                do(name)
            except KtaskfsError as refused:
                error = refused
        if given.json:
            found = {"errno": error and error.errno, "error": error and error.message}
            print(json.dumps({"name": name, "command": given.command, **found}))
        elif error is None:
            print(name)
        else:
            say(f"{name}: {error.message}")
        status = status if error is None else 1
    return status
