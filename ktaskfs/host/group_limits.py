"""The limits of control groups: what stands between two groups, and what a group and those above it leave.

A limit counts for all processes in a group and in the groups below it. Documentation/admin-guide/cgroup-v2.rst, and
hugetlb.rst, memory.rst and their neighbours in cgroup-v1/.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Final

from ktaskfs.errors import NotPermitted
from ktaskfs.host.cgroups import V2, Group, enter_group, own_groups

if TYPE_CHECKING:
    from collections.abc import Collection

    from ktaskfs.host.cgroups import GroupMounts

_GONE: Final = frozenset({errno.ENOENT, errno.ENODEV})
_UNLIMITED: Final = 1 << 62
"""Version 1, and hugetlb in version 2, show about 2**63 where there is no limit."""
_LIMIT_FILE: Final = re.compile(
    r".*\.(max|high|limit_in_bytes|cfs_quota_us)|cpuset\.(cpus|mems)|devices\.list|blkio\.throttle\.\w+_device"
)
_LIMIT_V2: Final = re.compile(r"^\d+ |=\d|^(?!max )\S+ \d+$", re.MULTILINE)
"""``cpu.max``; ``io.max`` and ``rdma.max``; ``misc.max``."""


def enter_groups(mounts: GroupMounts, wanted: Collection[Group]) -> None:
    """Move this process, which has one thread, into each of the ``wanted`` groups that it is not in.

    A group that cannot be entered is left out if no limit is set in it, nor above it up to the group that it shares
    with ours: so an ordinary user's daemon serves all sessions of the user. Otherwise raises NotPermitted: ENOENT for a
    group that was removed, EBUSY for one that may hold groups but no processes, else EACCES.
    """
    ours = own_groups()
    for group in wanted:
        if ours.get(group.controllers) == group:
            continue
        try:
            enter_group(mounts, group)
        except OSError as error:
            own = ours.get(group.controllers)
            if own is not None and not _limits_between(mounts, group, own):
                continue
            number = errno.ENOENT if error.errno in _GONE else error.errno
            text = f"the worker cannot enter your control group {group}: {error.strerror}"
            raise NotPermitted(text, errno=number if number in (errno.ENOENT, errno.EBUSY) else errno.EACCES) from error


def _limits_between(mounts: GroupMounts, theirs: Group, ours: Group) -> bool:
    """Whether ``theirs``, or a group above it that is not above ``ours``, has a limit; also if that is not known."""
    if theirs.controllers.startswith("name="):  # this hierarchy only names groups
        return False
    above_ours = set(ours.ancestors())
    shared = next((group for group in theirs.ancestors() if group in above_ours), None)
    if shared is None:
        return True
    try:
        return any(
            _is_limit(mounts, group, name, shared)
            for group in theirs.ancestors()
            if group not in above_ours
            for name in mounts.list(group)
            if _LIMIT_FILE.fullmatch(name)
        )
    except OSError:
        return True


def _is_limit(mounts: GroupMounts, group: Group, name: str, shared: Group) -> bool:
    text = mounts.read(group, name).strip()
    if name.startswith("cpuset.") and group.controllers != V2:  # it is never empty
        return text != mounts.read(shared, name).strip()
    if name.startswith(("cpuset.", "blkio.")):
        return bool(text)
    if name == "devices.list":
        return text != "a *:* rwm"
    if re.fullmatch(r"-?\d+", text):
        return 0 <= int(text) < _UNLIMITED
    return _LIMIT_V2.search(text) is not None
