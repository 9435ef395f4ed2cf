"""The limits that forbid a worker to stay in the daemon's group if it cannot enter its caller's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest

from ktaskfs.errors import NotPermitted
from ktaskfs.host.cgroups import Group, GroupMounts, _Mount, own_groups
from ktaskfs.host.group_limits import Headroom, enter_groups, memory_headroom
from ktaskfs.host.kernel import Kernel
from tests.support.cgroups import group, mount_point
from tests.support.forked import run_forked

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("root")

NOBODY = 65534
LIMITS: Final = {
    "": {"hugetlb.2MB.max": "2M", "hugetlb.2MB.rsvd.max": "2M"},
    "memory": {"memory.limit_in_bytes": "64M", "memory.max": "64M", "memory.high": "64M"},
    "pids": {"pids.max": "100"},
    "cpu": {"cpu.cfs_quota_us": "50000", "cpu.max": "50000 100000"},
    "cpuset": {"cpuset.cpus": str(min(os.sched_getaffinity(0)))},
} | ({} if mount_point("devices") == mount_point("") else {"devices": {"devices.deny": "a"}})


def entered(where: Path, controller: str) -> str:
    """The errno that an ordinary user gets, who may not enter the group, and whether the group is named; else empty."""

    def body() -> str:
        mounts = GroupMounts.open()
        path = "/" + str(where.relative_to(mount_point(controller)))
        known = {name: each.controllers for each in own_groups().values() for name in each.controllers.split(",")}
        os.setuid(NOBODY)
        try:
            enter_groups(mounts, [Group(known.get(controller, ""), path)])
        except NotPermitted as error:
            return f"{error.errname} {where.name in error.message}"
        return ""

    answer: str = run_forked(body)
    return answer


@pytest.mark.parametrize("controller", LIMITS)
def test_a_limit_that_would_be_left_is_an_error_and_no_limit_is_none(controller: str) -> None:
    version_2 = mount_point(controller) == mount_point("")
    above = {"cgroup.subtree_control": f"+{controller or 'hugetlb'}"} if version_2 else None
    seen = 0
    for name, limit in LIMITS[controller].items():
        with group(controller, above) as where, group(controller, below=where) as inner:
            if (inner / name).exists():  # version 1 and version 2 have other names
                assert entered(inner, controller) == ""
                (inner / name).write_text(limit)
                assert entered(inner, controller) == "EACCES True"
                seen += 1
    assert seen


@pytest.mark.parametrize(
    ("controllers", "limit", "usage"),
    [("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes")],
)
def test_the_tightest_limit_of_a_version_counts(tmp_path: Path, controllers: str, limit: str, usage: str) -> None:
    """Plain files, because a kernel has the memory controller in one version only."""
    for name, size in (("groups", 0), ("groups/a", 100), ("groups/a/b", 200)):
        where = tmp_path / name
        where.mkdir()
        (where / limit).write_text(f"{size or 'max'}\n")
        (where / usage).write_text("30\n")
        (where / "memory.stat").write_text("inactive_file 10\ntotal_inactive_file 10\n")
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text(f"7:cpu:/other\n0:{controllers}:/a/b\n")
    proc = os.open(tmp_path, os.O_PATH)
    mount = _Mount(os.open(tmp_path / "groups", os.O_PATH), "/")
    room = memory_headroom(Kernel(proc, proc, proc, GroupMounts({controllers: mount})))
    os.close(mount.fd)
    os.close(proc)
    assert room == Headroom(Group(controllers, "/a"), limit, limit=100, used=20)
