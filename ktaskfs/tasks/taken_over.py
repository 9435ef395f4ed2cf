"""The part of a caller's identity that its worker takes over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktaskfs.tasks.tunables import CGROUP, LABEL

if TYPE_CHECKING:
    from ktaskfs.host.credentials import Identity
    from ktaskfs.tasks.tunables import Settings


def taken_over(identity: Identity, settings: Settings) -> Identity:
    """The caller's identity without the control groups or the label, if the tunables exclude them."""
    groups = identity.cgroups if CGROUP.format(settings[CGROUP.name]) == "caller" else ()
    label = identity.label if LABEL.format(settings[LABEL.name]) == "caller" else None
    return identity._replace(cgroups=groups, label=label)
