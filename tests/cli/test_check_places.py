"""The checks of ``ktaskfs doctor`` that look whether somebody can write: a hugetlbfs, the state directories."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ktaskfs import config
from ktaskfs.cli import check_pools, check_service
from ktaskfs.cli.machine import MachineFiles, name_of

if TYPE_CHECKING:
    from pathlib import Path

MAKE_ROOM = "du -ahx /run | sort -h | tail  # and remove what nobody needs"
REMOUNT = 'mount -o remount,rw "$(findmnt -n -o TARGET -T /run/ktaskfs-state)"'


@pytest.fixture
def machine(tmp_path: Path) -> MachineFiles:
    """A machine with a hugetlbfs that has one directory."""
    (tmp_path / "dev/hugepages/ktask").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mounts").write_text("none /dev/hugepages hugetlbfs rw,pagesize=2M 0 0\n")
    return MachineFiles(str(tmp_path))


@pytest.mark.parametrize(
    ("writable", "level"), [([], "note"), (["dev/hugepages"], "ok"), (["dev/hugepages/ktask"], "ok")]
)
def test_a_hugetlbfs_of_somebody_else(
    machine: MachineFiles, monkeypatch: pytest.MonkeyPatch, writable: list[str], level: str
) -> None:
    may = {os.path.join(machine.root, each) for each in writable}
    monkeypatch.setattr(os, "access", lambda path, _: path in may)
    (found,) = check_pools.check_mounts(machine)
    user = name_of(os.getuid())
    mend = f"install -d -o {user} /dev/hugepages/{user}" if level == "note" else None
    assert (found.level.name, found.mend) == (level, mend)
    assert f"but {user} may not write to it" in found.text or level == "ok"


@pytest.mark.parametrize(
    ("free", "inodes", "flag", "mend"),
    [(512, 5, 0, None), (511, 5, 0, MAKE_ROOM), (512, 0, 0, MAKE_ROOM), (512, 5, os.ST_RDONLY, REMOUNT)],
)
def test_the_state_directories(
    machine: MachineFiles, monkeypatch: pytest.MonkeyPatch, free: int, inodes: int, flag: int, mend: str | None
) -> None:
    assert list(check_service.check_states(machine)) == []
    room = os.statvfs_result((4096, 4096, 1 << 20, free, free, 9, inodes, inodes, flag, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: room)
    (found,) = check_service.check_states(machine)
    assert (found.is_wrong, found.mend) == (mend is not None, mend)


def test_state_directories_on_a_filesystem_without_a_limit(
    machine: MachineFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tmpfs with size=0, or a ramfs: statvfs(3) has zeros."""
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255)))
    assert [each.text for each in check_service.check_states(machine) if each.is_wrong] == []


def test_the_place_of_the_state_directories_is_that_of_the_daemon() -> None:
    assert f"/{check_service.STATES}" == config.STATE_ROOT
