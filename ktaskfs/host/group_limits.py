"""The limits of control groups: those between two groups, and the room that a group and its parents leave.

A limit counts for all processes in a group and in the groups below it. Documentation/admin-guide/cgroup-v2.rst, and
hugetlb.rst, memory.rst and their neighbours in cgroup-v1/.
"""

from __future__ import annotations

import contextlib
import errno
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.errors import NotPermitted
from ktaskfs.host.cgroups import V2, Group, enter_group, own_groups, parse_groups
from ktaskfs.units import compared_sizes, human_size

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from ktaskfs.host.cgroups import GroupMounts
    from ktaskfs.host.kernel import Kernel

_GONE: Final = frozenset({errno.ENOENT, errno.ENODEV})
_UNLIMITED: Final = 1 << 62
"""Version 1, and hugetlb in version 2, show about 2**63 without a limit."""
_ENDINGS_V1: Final = ("limit_in_bytes", "usage_in_bytes")
"""The endings of the files with a limit and with its usage."""
_ENDINGS_V2: Final = ("max", "current")
_LIMIT_FILE: Final = re.compile(
    r".*\.(max|high|limit_in_bytes|cfs_quota_us)|cpuset\.(cpus|mems)|devices\.list|blkio\.throttle\.\w+_device"
)
_LIMIT_V2: Final = re.compile(r"^\d+ |=\d|^(?!max )\S+ \d+$", re.MULTILINE)
"""``cpu.max``; ``io.max`` and ``rdma.max``; ``misc.max``."""


def enter_groups(mounts: GroupMounts, wanted: Collection[Group]) -> None:
    """Move this process, which has one thread, into each of the ``wanted`` groups.

    A group that cannot be entered is skipped if neither it nor its parents, up to the common one, have a limit: so an
    ordinary user's daemon serves all sessions of the user. Otherwise raises NotPermitted: ENOENT for a group that was
    removed, EBUSY for one that may hold groups but no processes, else EACCES.
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
    """Whether ``theirs``, or a parent of it that is not a parent of ``ours``, has a limit; True if unknown."""
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


class Headroom(NamedTuple):
    """The room under a limit of ``group``, in bytes: ``limit`` is the value of ``file``, and ``used`` is not
    reclaimable."""

    group: Group
    file: str
    limit: int
    used: int

    @property
    def left(self) -> int:
        """Bytes that can still be charged."""
        return max(0, self.limit - self.used)

    def beside(self, wanted: int) -> tuple[str, str]:
        """``wanted`` bytes, and the room, for a sentence that compares them."""
        size, left = compared_sizes(wanted, self.left)
        state = f"{self.file} is {human_size(self.limit)}, {human_size(self.used)} in use"
        return size, f"your control group {self.group} has {left} left: {state}"


def page_headroom(kernel: Kernel, size: int, *, reserve: bool) -> Headroom | None:
    """The room of this process under the tightest limit on huge pages of ``size`` bytes; None without a limit.

    With ``reserve``, limits on reservations count, too. Raises OSError if the limits cannot be read.
    """
    shift, unit = next((shift, unit) for shift, unit in ((30, "GB"), (20, "MB"), (10, "KB")) if size >> shift)
    name = f"hugetlb.{size >> shift}{unit}"
    return _tightest(kernel, "hugetlb", [name, f"{name}.rsvd"] if reserve else [name])


def memory_headroom(kernel: Kernel) -> Headroom | None:
    """The room of this process under the tightest memory limit; None without a limit.

    Reclaimable page cache of files counts as free; swap is not counted. Raises OSError if the limits cannot be read.
    """
    return _tightest(kernel, "memory", ["memory"])


class OomKills(NamedTuple):
    """Counts the processes of ``group`` that the OOM killer killed, from ``before`` on.

    It holds no descriptor: the file is opened again after the worker's end.
    """

    mounts: GroupMounts
    group: Group
    before: int

    @classmethod
    def of(cls, mounts: GroupMounts, groups: Iterable[Group]) -> OomKills | None:
        """The counter for the process's group with the memory controller; None if the number cannot be read."""
        group = _with_controller(groups, "memory")
        before = None if group is None else _oom_kills(mounts, group)
        return None if group is None or before is None else cls(mounts, group, before)

    @property
    def happened(self) -> bool:
        """Whether a process was killed; False if the group was removed."""
        return (_oom_kills(self.mounts, self.group) or 0) > self.before


def _oom_kills(mounts: GroupMounts, group: Group) -> int | None:
    try:
        text = mounts.read(group, "memory.oom_control" if group.controllers else "memory.events")
    except OSError:  # ENODEV, ENOENT: the group was removed
        return None
    return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))


def _with_controller(groups: Iterable[Group], controller: str) -> Group | None:
    by_name = {name: group for group in groups for name in group.controllers.split(",")}
    return by_name.get(controller) or by_name.get(V2)


def _tightest(kernel: Kernel, controller: str, names: Sequence[str]) -> Headroom | None:
    """The room under the tightest limit that the label of this process lets it read; the others still apply.

    The limits are those in the files that begin with one of ``names``.
    """
    try:
        own = _with_controller(parse_groups(kernel.read_proc("self/cgroup")), controller)
    except NotPermitted:
        return None
    found: list[Headroom] = []
    for group in own.ancestors() if own is not None else ():
        with contextlib.suppress(PermissionError):
            found += _headrooms(kernel.cgroups, group, controller, names)
    return min(found, key=lambda each: each.left, default=None)


def _headrooms(mounts: GroupMounts, group: Group, controller: str, names: Sequence[str]) -> Iterator[Headroom]:
    limits, usages = _ENDINGS_V2 if group.controllers == V2 else _ENDINGS_V1
    for name in names:
        file = f"{name}.{limits}"
        limit = _number(mounts, group, file)
        used = None if limit is None else _number(mounts, group, f"{name}.{usages}")
        if limit is not None and used is not None:
            if controller == "memory":
                used -= min(used, _page_cache(mounts, group))
            yield Headroom(group, file, limit, used)


def _number(mounts: GroupMounts, group: Group, name: str) -> int | None:
    """The number in a file; None without a limit, file or group."""
    try:
        text = mounts.read(group, name).strip()
    except OSError as error:
        if error.errno in (*_GONE, errno.EXDEV, errno.EOPNOTSUPP):
            return None
        raise
    return int(text) if text.isdecimal() and int(text) < _UNLIMITED else None


def _page_cache(mounts: GroupMounts, group: Group) -> int:
    """Bytes of the page cache of files, including child groups, without tmpfs."""
    fields = dict(line.split(" ", 1) for line in mounts.read(group, "memory.stat").splitlines())
    prefix = "total_" if group.controllers else ""
    return sum(int(fields.get(f"{prefix}{name}", 0)) for name in ("active_file", "inactive_file"))
