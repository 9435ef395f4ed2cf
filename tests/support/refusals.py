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
    """What is said when ``start`` writes ``spec``, which has no name: at once, by the write.

    On a slow machine the write is answered first, and the task says it. The task is removed. With ``prefix`` before
    it, a command runs as the user of ``start``, whose last error is read.
    """
    outcome = start(f"{spec} name={NAME}")
    if outcome.status != 0:
        return Refusal(outcome.errname, mount.shell(f"{prefix} cat info/last_cmd_status").out)
    assert mount.cat(f"tasks/{NAME}/wait").out.splitlines()[-1] == "failed"
    error = mount.read(f"tasks/{NAME}/error")
    assert mount.shell(f"rmdir tasks/{NAME}").status == 0
    errname, _, words = error.partition(" at 0: ")
    return Refusal(errname, words)
