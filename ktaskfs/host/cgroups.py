"""Control groups: those of a process, their mounts, and entering them.

There is one hierarchy of version 2, and there may be several of version 1. cgroups(7), cgroup_namespaces(7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
from typing import TYPE_CHECKING, Final, NamedTuple

from ktaskfs.host.files import list_directory, read_file
from ktaskfs.mounts import open_harmless, open_mount
from ktaskfs.units import unescaped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

V2: Final = ""
"""The controllers of the hierarchy of version 2, as /proc/PID/cgroup writes them."""
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Group(NamedTuple):
    """A group of one hierarchy. ``controllers`` is ``memory``, ``cpu,cpuacct``, ``name=systemd``, or V2."""

    controllers: str
    path: str

    def __str__(self) -> str:
        path = "".join(each if each.isprintable() else "?" for each in self.path)
        return f"{self.controllers or 'v2'}:{path}"

    def ancestors(self) -> Iterator[Group]:
        """The group itself, then those above it, up to the root."""
        path = self.path
        while True:
            yield Group(self.controllers, path)
            if path in ("/", ""):
                return
            path = posixpath.dirname(path)


def parse_groups(text: str) -> tuple[Group, ...]:
    """The groups in the text of /proc/PID/cgroup, with paths as the reader's control group namespace shows them."""
    lines = (line.split(":", 2) for line in text.split("\n") if line)
    return tuple(Group(controllers, path) for _, controllers, path in lines)


class _Mount(NamedTuple):
    """A mount of a hierarchy: an O_PATH descriptor, and the path of the group that it shows."""

    fd: int
    root: str


class GroupMounts(NamedTuple):
    """The mounted hierarchies by controller; the key of the one of version 2 is V2."""

    by_controller: Mapping[str, _Mount]

    @classmethod
    def open(cls) -> GroupMounts:
        """Open all of them now. A hierarchy that cannot be opened counts as not mounted. Raises OSError without
        /proc."""
        # Of several mounts of one hierarchy, prefer a writable one, then the one that shows most groups.
        return cls(_open_mounts(open_mount, sorted(_places(), key=lambda each: (each.read_only, len(each.root)))))

    @classmethod
    def open_read_only(cls) -> GroupMounts:
        """Open read-only copies of the mounts whose limits concern memory.

        Without CAP_SYS_ADMIN, or before Linux 5.12: read-only mounts, if there are any, or else the existing ones.
        Raises OSError without /proc.
        """
        wanted = [each for each in _places() if {V2, "memory", "hugetlb"}.intersection(each.controllers)]
        return cls(_open_mounts(open_harmless, sorted(wanted, key=lambda each: (len(each.root), not each.read_only))))

    @property
    def descriptors(self) -> frozenset[int]:
        """All descriptors."""
        return frozenset(mount.fd for mount in self.by_controller.values())

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.descriptors:
            os.close(fd)

    def open_group(self, group: Group) -> int:
        """An O_PATH descriptor of the group's directory; raises OSError: ENOENT if it was removed."""
        mount = self.by_controller.get(group.controllers.split(",")[0])
        if mount is None:
            raise OSError(errno.EOPNOTSUPP, "its hierarchy is not mounted in the daemon's control group namespace")
        root = mount.root.rstrip("/")
        below = group.path[len(root) :]
        if not f"{group.path}/".startswith(f"{root}/") or ".." in below.split("/"):
            raise OSError(errno.EXDEV, "it lies outside the mounted hierarchy")
        return os.open(f".{below}", _DIRECTORY | os.O_NOFOLLOW, dir_fd=mount.fd)

    def read(self, group: Group, name: str) -> str:
        """The text of a group's file; raises OSError, ENODEV for a group that is being removed."""
        with self._opened(group) as directory:
            return read_file(name, directory).decode(errors="replace")

    def open_file(self, group: Group, name: str, flags: int = os.O_RDONLY) -> int:
        """Open a group's file; raises OSError."""
        with self._opened(group) as directory:
            return os.open(name, flags | os.O_CLOEXEC, dir_fd=directory)

    def list(self, group: Group) -> list[str]:
        """The names of a group's files and of the groups in it; raises OSError."""
        with self._opened(group) as directory:
            return list_directory(".", directory)

    @contextlib.contextmanager
    def _opened(self, group: Group) -> Iterator[int]:
        directory = self.open_group(group)
        try:
            yield directory
        finally:
            os.close(directory)


def groups_of(pid: int | str) -> tuple[Group, ...]:
    """The groups of a process, one in each hierarchy; empty if it has ended, or if /proc hides it (hidepid). Raises
    OSError."""
    try:
        return parse_groups(os.fsdecode(read_file(f"/proc/{pid}/cgroup")))
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return ()


def own_groups() -> dict[str, Group]:
    """The groups of this process by controllers; raises OSError without /proc."""
    return {group.controllers: group for group in groups_of("self")}


def frozen_group(mounts: GroupMounts, pid: int) -> Group | None:
    """The process's group, or one above it, whose freezer holds the process; None if it is not frozen, or has ended.

    Raises OSError.
    """
    for group in groups_of(pid):
        for each in group.ancestors():
            with contextlib.suppress(OSError):  # it is not mounted here, or is the root, which has no such file
                if _is_told_to_freeze(mounts, each):
                    return each
        with contextlib.suppress(OSError):
            if group.controllers == V2 and "frozen 1" in mounts.read(group, "cgroup.events").splitlines():
                return group  # a group above it, which is not mounted here, was told to
    return None


def _is_told_to_freeze(mounts: GroupMounts, group: Group) -> bool:
    """Raises OSError for a group without a freezer.

    The state "frozen" would say less: one process that waits for a FUSE server, such as a reader of this mount, keeps
    its whole group of version 2 from it.
    """
    if group.controllers == V2:
        return mounts.read(group, "cgroup.freeze") == "1\n"
    return "freezer" in group.controllers.split(",") and mounts.read(group, "freezer.state") != "THAWED\n"


def enter_group(mounts: GroupMounts, group: Group) -> None:
    """Move this process, which has one thread, into ``group``.

    Raises OSError: ENOENT or ENODEV for a group that was removed, EBUSY for one that may hold groups but no processes.
    """
    # Version 1 moves a single thread without waiting for all other processes (percpu rwsem).
    fd = mounts.open_file(group, "tasks" if group.controllers else "cgroup.procs", os.O_WRONLY)
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


def _open_mounts(open_point: Callable[[str], int], places: Iterable[_Place]) -> dict[str, _Mount]:
    """For each controller the first place that can be opened."""
    mounts: dict[str, _Mount] = {}
    for place in places:
        new = [name for name in place.controllers if name not in mounts]
        if new:
            with contextlib.suppress(OSError):
                mounts.update(dict.fromkeys(new, _Mount(open_point(place.point), place.root)))
    return mounts


class _Place(NamedTuple):
    """A mounted hierarchy: its controllers, the group that it shows, the mount point."""

    controllers: tuple[str, ...]
    root: str
    point: str
    read_only: bool


def _places() -> list[_Place]:
    """All mounts of hierarchies. proc_pid_mountinfo(5)."""
    known = {name for controllers in own_groups() for name in controllers.split(",")}
    with open("/proc/self/mountinfo", "rb") as file:
        lines = os.fsdecode(file.read()).split("\n")[:-1]
    places = []
    for line in lines:
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        words = left.split(" ")
        root, point = map(unescaped, words[3:5])
        if not root.startswith("/.."):  # names outside this namespace are unknown
            names = options.split(",")
            controllers = (V2,) if kind == "cgroup2" else tuple(name for name in names if name in known)
            places.append(_Place(controllers, root, point, "ro" in words[5].split(",")))
    return places
