"""Control groups of a test's own, on the hierarchies that this machine has mounted."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTER: Final = 'enter() { for group; do echo $$ > "$group/cgroup.procs" || exit 9; done; }\n'
"""A function of a shell: go into these groups."""
LEAVE: Final = 'leave() { for group; do echo $$ > "$(dirname "$group")/cgroup.procs" || exit 9; done; }\n'
"""Go into the groups above these."""


def hierarchies() -> list[tuple[list[str], Path]]:
    """The controllers and the mount point of each hierarchy; version 2 has the controller ''."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ")
        kind, _, options = right.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            found.append(([""] if kind == "cgroup2" else options.split(",")[1:], Path(left.split()[4])))
    return found


def mount_point(controller: str) -> Path:
    """Where groups with this controller are made: in version 1 if it is mounted there."""
    known = {name: point for names, point in hierarchies() for name in names}
    return known.get(controller) or known[""]


def distinct(*controllers: str) -> list[str]:
    """One of ``controllers`` for each hierarchy that has them: the first, with version 2 only."""
    return list({mount_point(each): each for each in reversed(controllers)}.values())[::-1]


@contextlib.contextmanager
def group(
    controller: str, limits: dict[str, str] | None = None, *, below: Path | None = None, name: str = "kt-group"
) -> Iterator[Path]:
    """A new group with ``limits`` in its files, in our own group or ``below``; removed when it is empty."""
    point = mount_point(controller)
    path = (below or own_group(controller)) / f"{name}-{os.getpid()}"
    if controller == "cpuset" and point != mount_point(""):
        limits = {name: (path.parent / name).read_text() for name in ("cpuset.cpus", "cpuset.mems")} | (limits or {})
    if below is None and point == mount_point(""):
        count_huge_pages(path.parent)
    path.mkdir()
    try:
        for file, value in (limits or {}).items():
            (path / file).write_text(value)
        yield path
    finally:
        until(lambda: removed(path), f"{path} is empty")


def count_huge_pages(above: Path) -> None:
    """Have the groups below one of version 2 count huge pages. It stays so: another run of the tests may rely on it."""
    if "hugetlb" in (above / "cgroup.controllers").read_text().split():
        (above / "cgroup.subtree_control").write_text("+hugetlb")


def removed(path: Path) -> bool:
    """Whether the group is removed; false while there are processes in it."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def own_group(controller: str) -> Path:
    """The directory of the group that this process is in."""
    point = mount_point(controller)
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if mount_point(controllers.split(",")[0]) == point:
            return point / path.lstrip("/")
    raise AssertionError(f"this process is in no group with {controller}")


def groups_of(pid: int | str) -> list[str]:
    """The lines of /proc/PID/cgroup."""
    return Path(f"/proc/{pid}/cgroup").read_text().splitlines()
