"""The guard of files in use: an operation that would destroy their contents needs ``force=1``."""

from __future__ import annotations

import errno
import os
import re
import time
from typing import TYPE_CHECKING, Final, TypeVar

from ktaskfs.errors import TargetError
from ktaskfs.host.holders import holders_of, is_held, workers_at
from ktaskfs.host.target import AbsentTarget
from ktaskfs.operations.base.parameters import FLAG, TaskParameters, parameter

if TYPE_CHECKING:
    from ktaskfs.host.kernel import Kernel
    from ktaskfs.host.target import Target
    from ktaskfs.operations.base.plan import Preparation

LOOKS: Final = 3
PAUSE: Final = 0.02
"""Seconds between two checks: enough for a cat(1) to end, and for a new worker to mark its file."""
SHOWN: Final = 2
"""Holders that the refusal names."""
_THROUGH_PROCESS: Final = re.compile(r"/proc/(\d+)(/task/\d+)?/(fd|map_files)/[^/]+")


class GuardedParameters(TaskParameters):
    """Parameters of operations that overwrite or free the contents of a file."""

    force: bool = parameter(FLAG, "work even if other processes have the file open or mapped (0: EBUSY)", default=False)


P = TypeVar("P", bound=GuardedParameters)


def guard(preparation: Preparation[P], target: Target) -> None:
    """Refuse a file that other processes hold, unless ``force=1``: TargetError (EBUSY) names them.

    Call it when ``target`` is this process's only descriptor of the file: the kernel only reports whether there
    are others. Other workers do not count, nor does a process in ``path`` (/proc/PID/fd/N).
    """
    if preparation.parameters.force or target.created or isinstance(target, AbsentTarget):
        return
    holders: str | None = None
    for look in range(LOOKS):
        if look:
            time.sleep(PAUSE)
        holders = _holders(preparation.kernel, target)
        if holders is None:
            return
    raise TargetError(f"{target.path} is {holders}: force=1 works on it anyway", errno=errno.EBUSY)


def _holders(kernel: Kernel, target: Target) -> str | None:
    """The holders of the file, in words; None if none is known."""
    held = is_held(target.fd)
    if (
        held is False and os.fstat(target.fd).st_nlink
    ):  # a file without a name may be a memfd, for which the kernel does not report the first user
        return None
    expected = workers_at(kernel, target.fd)
    if through := _THROUGH_PROCESS.fullmatch(re.sub("^/+", "/", os.path.normpath(target.path))):
        expected.add(int(through[1]))
    others = [each for each in holders_of(kernel, target.fd) if each.pid not in expected]
    if others:
        names = [str(each) for each in others[:SHOWN]]
        if rest := len(others) - len(names):
            names.append(f"{rest} others" if rest > 1 else "1 other")
        return f"in use by {' and '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)}"
    return "held by a process that you cannot see" if held and not expected else None
