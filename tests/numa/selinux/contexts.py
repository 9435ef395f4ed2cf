"""Contexts of the policy in this directory."""

from __future__ import annotations

from typing import Final

CONFINE: Final = 'confine() { printf %s "$1" > /proc/$BASHPID/attr/current || exit 9; }\n'
"""A function of a shell: have this context from now on."""


def context(domain: str, level: str = "s0", *, role: str = "system_r") -> str:
    """The whole context; that of a file has the role ``object_r``."""
    return f"system_u:{role}:{domain}:{level}"


SERVICE: Final = context("unconfined_service_t", "s0-s0:c0,c1")
"""The daemon's."""
