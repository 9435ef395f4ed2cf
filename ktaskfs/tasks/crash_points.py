"""Crash points: points in a task's life at which a daemon might die, and a way to make it die there.

The next daemon must recover from each of them; docs/explanation/reliability.md describes the result. Tests kill the
daemon at each point. Without the environment variable a daemon calls a function that does nothing.
"""

from __future__ import annotations

import itertools
import os
import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VARIABLE: Final = "KTASKFS_DIE_AT_STEP"
"""The number of the crash point, from 1, at which a daemon with this variable in its environment kills itself with
SIGKILL."""


def pass_on(name: str) -> None:
    """A crash point outside of tests: does nothing."""


def crash_points(environment: Mapping[str, str]) -> Callable[[str], None]:
    """The function to call at each crash point, with the point's name."""
    wanted = environment.get(VARIABLE)
    if wanted is None:
        return pass_on
    numbers = itertools.count(1)

    def crash_point(name: str) -> None:
        if next(numbers) == int(wanted):
            os.write(2, f"dying at step {wanted}: {name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    return crash_point
