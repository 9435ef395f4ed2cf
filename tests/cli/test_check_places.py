"""The checks of ``ktaskfs doctor`` that look whether somebody can write: a hugetlbfs, the state directories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ktaskfs import config
from ktaskfs.cli import check_pools, check_service
from ktaskfs.cli.machine import MachineFiles, name_of
from ktaskfs.cli.mounted import Mounted

MOUNTED = Mounted("/mnt/kt")
FILESYSTEM = '"$(findmnt -n -o TARGET -T /run/ktaskfs-state)"'
MAKE_ROOM = f"du -ahx {FILESYSTEM} | sort -h | tail  # and remove what nobody needs"
REMOUNT = f"mount -o remount,rw {FILESYSTEM}"


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
    assert list(check_service.check_states(machine, MOUNTED)) == []
    room = os.statvfs_result((4096, 4096, 1 << 20, free, free, 9, inodes, inodes, flag, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: room)
    (found,) = check_service.check_states(machine, MOUNTED)
    assert (found.is_wrong, found.mend) == (mend is not None, mend)


def test_state_directories_on_a_filesystem_without_a_limit(
    machine: MachineFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tmpfs with size=0, or a ramfs: statvfs(3) has zeros."""
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255)))
    assert [each.text for each in check_service.check_states(machine, MOUNTED) if each.is_wrong] == []


@pytest.mark.parametrize("uid", [0, 12345])
def test_the_state_directory_of_a_mount_with_one(
    machine: MachineFiles, monkeypatch: pytest.MonkeyPatch, uid: int
) -> None:
    """Another user's process may have any command line."""
    process = Path(machine.root) / "proc/77"
    process.mkdir()
    command = ["python3", "ktaskfs", "mount", "-o", "mode=0666,statedir=/srv/a b", "/mnt/kt"]
    (process / "cmdline").write_text("\0".join([*command, ""]))
    (process / "status").write_text(f"Name:\tktaskfs\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
    looked: list[str] = []

    def statvfs(path: str) -> os.statvfs_result:
        looked.append(os.path.relpath(path, machine.root))
        return os.statvfs_result((4096, 4096, 1 << 20, 9, 9, 9, 5, 5, os.ST_RDONLY, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    (found,) = check_service.check_states(machine, MOUNTED)
    place = "run/ktaskfs-state" if uid == 12345 else "srv/a b"
    assert looked == [place]
    assert found.text == f"/{place} is read-only: no task can start"
    assert found.mend == (REMOUNT if uid == 12345 else REMOUNT.replace("/run/ktaskfs-state", "'/srv/a b'"))


def test_the_default_of_another_user_is_unknown(machine: MachineFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    room = os.statvfs_result((4096, 4096, 1 << 20, 0, 0, 9, 0, 0, os.ST_RDONLY, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: room)
    monkeypatch.setattr(os, "stat", lambda _: os.stat_result((0o40755, 1, 1, 1, 12345, 12345, 0, 0, 0, 0)))
    assert list(check_service.check_states(machine, MOUNTED)) == [], "root's directory is not the one"


def test_the_place_of_the_state_directories_is_that_of_the_daemon() -> None:
    assert f"/{check_service.STATES}" == config.STATE_ROOT
