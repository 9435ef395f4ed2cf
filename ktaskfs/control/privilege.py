"""What a caller may do beyond its own tasks: decided by capabilities in the daemon's user namespace, not by uid 0.

Only writes ask for it, once for each opening: names are seen by uid (hidepid), and files are read by mode bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ktaskfs.errors import NotPermitted
from ktaskfs.host.credentials import read_caller

if TYPE_CHECKING:
    from ktaskfs.host.credentials import CallerProcess
    from ktaskfs.vfs import Caller

CAP_KILL: Final = 1 << 5
CAP_SYS_ADMIN: Final = 1 << 21
"""Bits of an Identity's capabilities (linux/capability.h)."""
UNSEEN: Final = "your process is in a pid namespace that the daemon cannot see: write from outside of it"


def find_caller(caller: Caller) -> CallerProcess:
    """The process behind a request, while it waits for the answer.

    Raises NotPermitted if this daemon cannot see the process, TargetError if it has no descriptor left.
    """
    if not caller.pid:
        raise NotPermitted(UNSEEN)
    return read_caller(caller.pid, caller.uid, caller.gid)


def capabilities_of(caller: Caller) -> tuple[int, int]:
    """Effective and permitted capabilities of the process behind a request, none if it cannot be seen.

    Raises TargetError if this process has no descriptor left.
    """
    try:
        process = find_caller(caller)
    except NotPermitted:
        return 0, 0
    process.close()
    return process.identity.effective, process.identity.permitted


def require_power_over(uid: int, effective: int, owner: int, what: str) -> None:
    """Raise NotPermitted unless ``uid`` with these capabilities may signal processes of ``owner``, as by kill(2)."""
    if uid != owner and not effective & CAP_KILL:
        raise NotPermitted(f"{what}: it is user {owner}'s, and you do not have the capability CAP_KILL")


def require_admin(uid: int, effective: int, what: str) -> None:
    """Raise NotPermitted for uid 0 without CAP_SYS_ADMIN, such as root in a container."""
    if uid == 0 and not effective & CAP_SYS_ADMIN:
        raise NotPermitted(f"{what}: you do not have the capability CAP_SYS_ADMIN")
