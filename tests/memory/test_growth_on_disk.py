"""The undo of a failed start on filesystems whose files are not memory, while others use the same file."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host import syscalls
from ktaskfs.host.target import Target
from ktaskfs.memory import growth
from tests.memory.test_growth import LENGTH, growing
from tests.support.filesystems import EXT4, disk_image
from tests.support.memory_files import HUGE, allocated, content, write_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Runner


DISKS = pytest.mark.parametrize(
    "command",
    [
        "mke2fs -t ext2 -b 1024",
        "mke2fs -t ext2 -b 4096",
        "mke2fs -t ext4",
        "mke2fs -t ext4 -O ^extent,^64bit",
        "mke2fs -t ext4 -O bigalloc",
        "mkfs.xfs",
        "mkfs.btrfs",
    ],
)


def test_abort_spares_what_others_have_written_to_a_disk(runner: Runner, area: Path) -> None:
    for new in (False, True):
        path = area / f"new {new}"
        if not new:
            path.touch()
        plan = growing(runner, "copy", path, area)
        with path.open("r+b") as file:
            file.write(b"precious")
        plan.abort()
        assert (path.stat().st_size, path.read_bytes()[:8]) == (LENGTH, b"precious")


@pytest.mark.parametrize("seek_data", [True, False])
@DISKS
def test_abort_leaves_nothing_on_a_disk(
    runner: Runner, area: Path, command: str, seek_data: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without fallocate(2), and where SEEK_DATA calls everything data."""
    if not seek_data:
        monkeypatch.setattr(growth, "data_extents", lambda fd, start, end: iter([(start, end)] if start < end else []))
    with disk_image(area, *command.split()) as directory:
        path = directory / "file"
        growing(runner, "copy", path, area).abort()
        assert not path.exists()
        path.write_bytes(b"x" * 100)
        before = allocated(path)
        growing(runner, "copy", path, area).abort()
        assert (path.read_bytes(), allocated(path)) == (b"x" * 100, before)


@DISKS
def test_abort_spares_what_others_have_written_to_any_disk(runner: Runner, area: Path, command: str) -> None:
    with disk_image(area, *command.split()) as directory:
        for at in (0, 4 * HUGE, LENGTH - 9000, LENGTH - 8):
            for new in (False, True):
                path = directory / f"file {at} {new}"
                if not new:
                    path.touch()
                plan = growing(runner, "copy", path, area)
                with path.open("r+b") as file:
                    os.pwrite(file.fileno(), b"precious", at)
                    plan.abort()
                    assert (path.stat().st_size, os.pread(file.fileno(), 8, at)) == (LENGTH, b"precious")
                path.unlink()


def test_abort_spares_what_others_have_set_aside_on_a_disk(runner: Runner, area: Path) -> None:
    with disk_image(area, *EXT4) as directory:
        path = directory / "file"
        plan = growing(runner, "copy", path, area)
        subprocess.run(["fallocate", "-l", "8M", str(path)], check=True)
        plan.abort()
        assert (path.stat().st_size, allocated(path)) == (LENGTH, 8 << 20)


def test_abort_spares_what_others_have_set_aside_at_the_same_time(
    runner: Runner, area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = syscalls.fallocate

    def beside(fd: int, mode: int, offset: int, length: int) -> None:
        original(fd, mode, offset, length)
        original(fd, 0, 0, 8 << 20)

    with disk_image(area, *EXT4) as directory:
        path = directory / "file"
        with monkeypatch.context() as patch:
            patch.setattr(syscalls, "fallocate", beside)
            plan = growing(runner, "copy", path, area)
        plan.abort()
        assert (path.stat().st_size, allocated(path)) == (LENGTH, 8 << 20)


def test_abort_spares_what_others_have_extended_before(
    runner: Runner, area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look at the allocation, in Growth's constructor, comes after that at the size."""
    path, original = area / "file", Target.allocated

    def late(target: Target) -> int:
        if path.stat().st_size == 0:
            os.truncate(path, HUGE)
        return original(target)

    with monkeypatch.context() as patch:
        patch.setattr(Target, "allocated", late)
        plan = growing(runner, "copy", path, area)
    plan.abort()
    assert path.stat().st_size == LENGTH


def test_a_filesystem_that_allocates_nothing_in_advance(
    runner: Runner, area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(fd: int, mode: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(syscalls, "fallocate", unknown)
    growing(runner, "copy", area / "file", area).abort()
    write_bytes(area / "source", content(HUGE))
    runner.run("copy", source=area / "source", path=area / "file")
    assert (area / "file").read_bytes() == content(HUGE) + bytes(LENGTH - HUGE)
