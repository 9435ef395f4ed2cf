"""Privileges beyond a caller's own tasks: capabilities in the daemon's user namespace decide, not uid 0.

Only writes need them, checked once for each open; uid (hidepid) decides about names, and mode bits about reading.
"""

from __future__ import annotations

from typing import Final

from ktaskfs.errors import NotPermitted

CAP_KILL: Final = 1 << 5
CAP_SYS_ADMIN: Final = 1 << 21
"""Bits of an Identity's capabilities (linux/capability.h)."""


def require_power_over(uid: int, effective: int, owner: int, what: str) -> None:
    """Raise NotPermitted unless ``uid`` with these capabilities may signal processes of ``owner``, as with kill(2)."""
    if uid != owner and not effective & CAP_KILL:
        raise NotPermitted(f"{what}: it is user {owner}'s, and you do not have the capability CAP_KILL")


def require_admin(uid: int, effective: int, owner: int, what: str) -> None:
    """Raise NotPermitted without CAP_SYS_ADMIN, except for ``owner``, the daemon's user, if that is not root.

    The mode bits restrict neither uid 0 nor a process with CAP_DAC_OVERRIDE, which root of a container may pass on to
    any uid.
    """
    if not effective & CAP_SYS_ADMIN and (uid == 0 or uid != owner):
        raise NotPermitted(f"{what}: you do not have the capability CAP_SYS_ADMIN")
