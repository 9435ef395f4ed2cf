"""What a caller may do beyond its own tasks: decided by capabilities in the daemon's user namespace, not by uid 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ktaskfs.errors import NotPermitted
from ktaskfs.host.credentials import read_caller

if TYPE_CHECKING:
    from ktaskfs.host.credentials import CallerProcess, Identity
    from ktaskfs.vfs import Caller

CAP_KILL: Final = 1 << 5
CAP_SYS_ADMIN: Final = 1 << 21
"""Bits of an Identity's capabilities (linux/capability.h)."""


def find_caller(caller: Caller) -> CallerProcess:
    """The process behind a request, while it waits for the answer.

    Raises NotPermitted if this daemon cannot see the process, TargetError if it has no descriptor left.
    """
    if not caller.pid:
        text = "your process is in a pid namespace that the daemon cannot see: write from outside of it"
        raise NotPermitted(text)
    return read_caller(caller.pid, caller.uid, caller.gid)


def identify(caller: Caller) -> Identity:
    """Who makes a request; raises as ``find_caller``."""
    process = find_caller(caller)
    process.close()
    return process.identity


def is_powerless_root(identity: Identity) -> bool:
    """Whether it is uid 0 without CAP_SYS_ADMIN here, as root in a container is."""
    return identity.uid == 0 and not identity.effective & CAP_SYS_ADMIN


def require_power_over(identity: Identity, owner: int, what: str) -> None:
    """Raise NotPermitted unless ``identity`` may signal processes of ``owner``, as kill(2) has it."""
    if identity.uid != owner and not identity.effective & CAP_KILL:
        raise NotPermitted(f"{what} of user {owner}: you need the capability CAP_KILL for it")
