"""Names of tasks on the command line, with globs."""

from __future__ import annotations

import errno
import fnmatch
import re
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import NoSuchTask, NotPermitted, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ktaskfs.cli.mounted import Mounted

GLOB: Final = re.compile(r"[*?[]")
"""Characters that no task name has."""
FORBIDDEN: Final = (errno.EACCES, errno.EPERM)


def chosen(mounted: Mounted, patterns: Sequence[str], note: Callable[[str], None]) -> list[str]:
    """The tasks that match the patterns, each once, in the order of the patterns.

    A glob leaves out tasks that the caller may not read; ``note`` is told how many.

    Raises NoSuchTask for a pattern that matches no task, NotPermitted for a glob that matches no readable one.
    """
    present = mounted.directories("tasks")
    found: list[str] = []
    left_out: set[str] = set()
    for pattern in patterns:
        names = matching(present, pattern)
        if GLOB.search(pattern):
            forbidden = {name for name in names if not _is_readable(mounted, name)}
            names = [name for name in names if name not in forbidden]
            left_out |= forbidden
            if not names:
                raise NotPermitted(f"you may not read any task that matches {pattern}")
        found += names
    if left_out:
        note(f"left out, because you may not read them: {len(left_out)} of {len(present)} tasks")
    return list(dict.fromkeys(found))


def _is_readable(mounted: Mounted, name: str) -> bool:
    try:
        mounted.read(f"tasks/{name}/state")
    except TargetError as error:
        return error.errno not in FORBIDDEN  # the next read reports any other error
    return True


def matching(names: Sequence[str], pattern: str) -> list[str]:
    """The ``names`` that match. Raises NoSuchTask if there are none."""
    found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        kind = "no task matches" if GLOB.search(pattern) else "there is no task"
        raise NoSuchTask(f"{kind} {pattern}")
    return found
