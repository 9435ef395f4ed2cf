"""The points in a task's life at which a daemon might die, and a way to have it die there.

The next daemon must be able to go on from each of them; docs/explanation/reliability.md says what it then finds. The
tests kill the daemon at each point in turn. Nothing else uses this: without the variable in its environment a daemon
only calls a function that does nothing.
"""

from __future__ import annotations

import itertools
import os
import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VARIABLE: Final = "KTASKFS_DIE_AT_STEP"
"""The number of the crash point, from 1, at which a daemon with this in its environment ends itself with SIGKILL."""


def pass_on(name: str) -> None:
    """A crash point of a daemon that is not under test: nothing happens."""


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
