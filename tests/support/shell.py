"""Real programs, run by a real shell, as at a terminal."""

from __future__ import annotations

import errno
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.support.poll import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.support.users import User

NAMES: Final = {os.strerror(number): name for number, name in errno.errorcode.items()} | {
    os.strerror(errno.EAGAIN): "EAGAIN",  # EWOULDBLOCK is the same number
    os.strerror(errno.EOPNOTSUPP): "EOPNOTSUPP",  # so is ENOTSUP
}
"""The messages of the C library in the C locale, with the names of their errnos."""


@dataclass(frozen=True)
class Outcome:
    """The end of a command: its status (negative: the signal) and its output."""

    status: int
    out: str
    err: str

    @property
    def errname(self) -> str | None:
        """The errno that the last line of stderr ends with (``bash: echo: write error: Invalid argument``)."""
        lines = self.err.strip().splitlines()
        return NAMES.get(lines[-1].rpartition(": ")[2]) if lines else None


def run(
    *command: str,
    user: User | None = None,
    stdin: str | bytes = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 4 * DEADLINE,
) -> Outcome:
    """Run ``command`` to its end, as ``user`` with no other groups if given; never raises for its status."""
    done = subprocess.run(
        command,
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        check=False,
        cwd=cwd,
        env=environment(user) | dict(env or {}),
        timeout=timeout,
        user=None if user is None else user.uid,
        group=None if user is None else user.gid,
        extra_groups=None if user is None else [],
    )
    return Outcome(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def shell(script: str, *arguments: str, user: User | None = None, cwd: Path | None = None) -> Outcome:
    """Run ``script`` with ``$1``, ``$2`` … set, by bash, which unlike dash names the errno of a failed write."""
    return run("bash", "-c", script, "bash", *arguments, user=user, cwd=cwd)


def environment(user: User | None) -> dict[str, str]:
    """The environment of a command run as ``user``: this one, in the C locale, with the user's home."""
    here = dict(os.environ, LC_ALL="C")
    if user is None:
        return here
    here.pop("XDG_RUNTIME_DIR", None)
    return here | {"HOME": str(user.home), "USER": user.name, "LOGNAME": user.name}
