"""Starts that are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.daemon import Mount
    from tests.support.shell import Outcome

NAME: Final = "refused"


@dataclass(frozen=True)
class Refusal:
    """The errno's name and the words."""

    errname: str | None
    words: str


def refusal(mount: Mount, start: Callable[[str], Outcome], spec: str, prefix: str = "") -> Refusal:
    """Write ``spec``, which has no name, by ``start``; return the refusal, from the write or from the task.

    On a slow machine the write succeeds before the refusal, and the task has the error. The task is removed. A command
    after ``prefix`` runs as the user of ``start``: info/last_cmd_status shows each user their own last command.
    """
    outcome = start(f"{spec} name={NAME}")
    if outcome.status != 0:
        return Refusal(outcome.errname, mount.shell(f"{prefix} cat info/last_cmd_status").out)
    assert mount.cat(f"tasks/{NAME}/wait").out.splitlines()[-1] == "failed"
    error = mount.read(f"tasks/{NAME}/error")
    assert mount.shell(f"rmdir tasks/{NAME}").status == 0
    errname, _, words = error.partition(" at 0: ")
    return Refusal(errname, words)
