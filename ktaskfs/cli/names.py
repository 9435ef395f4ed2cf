"""Names of tasks on the command line, with globs."""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import NoSuchTask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.cli.mounted import Mounted

GLOB: Final = re.compile(r"[*?[]")
"""Characters that no task name has."""


def chosen(mounted: Mounted, patterns: Sequence[str]) -> list[str]:
    """The tasks that the patterns name, each once, in that order. Raises NoSuchTask for one that names none."""
    present = mounted.directories("tasks")
    return list(dict.fromkeys(name for pattern in patterns for name in matching(present, pattern)))


def matching(names: Sequence[str], pattern: str) -> list[str]:
    """Those of ``names`` that match. Raises NoSuchTask if there are none."""
    found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        kind = "no task matches" if GLOB.search(pattern) else "there is no task"
        raise NoSuchTask(f"{kind} {pattern}")
    return found
