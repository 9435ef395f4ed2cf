"""What a caller may do beyond its own tasks: decided by capabilities in the daemon's user namespace, not by uid 0.

Only writes ask for it, once for each opening: names are seen by uid (hidepid), and files are read by mode bits.
"""

from __future__ import annotations

from typing import Final

from ktaskfs.errors import NotPermitted

CAP_KILL: Final = 1 << 5
CAP_SYS_ADMIN: Final = 1 << 21
"""Bits of an Identity's capabilities (linux/capability.h)."""


def require_power_over(uid: int, effective: int, owner: int, what: str) -> None:
    """Raise NotPermitted unless ``uid`` with these capabilities may signal processes of ``owner``, as by kill(2)."""
    if uid != owner and not effective & CAP_KILL:
        raise NotPermitted(f"{what}: it is user {owner}'s, and you do not have the capability CAP_KILL")


def require_admin(uid: int, effective: int, what: str) -> None:
    """Raise NotPermitted for uid 0 without CAP_SYS_ADMIN, such as root in a container."""
    if uid == 0 and not effective & CAP_SYS_ADMIN:
        raise NotPermitted(f"{what}: you do not have the capability CAP_SYS_ADMIN")
