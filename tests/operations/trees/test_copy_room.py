"""``copy`` of a directory: what it needs on the target, and what the target has left."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import OutOfHugePages, OutOfSpace
from tests.operations.trees.ground import as_nobody, make
from tests.operations.trees.test_copy import copied, traits
from tests.support import filesystems, hugepages

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Place, Runner

MIB = 1 << 20


@pytest.fixture
def some(disk: Path) -> Path:
    """A directory with 20 files of 256 KiB in 4 directories."""
    for number in range(20):
        make(disk / f"source/d{number % 4}/f{number}")
    return disk / "source"


def test_more_files_than_inodes_are_refused(runner: Runner, some: Path, area: Path, root: None) -> None:
    with filesystems.tmpfs(area / "few", 64 * MIB, "nr_inodes=20") as few:
        left = os.statvfs(few).f_favail
        refused = runner.refused("copy", source=some, path=few / "copy")
        assert isinstance(refused, OutOfSpace)
        words = f"24 files and directories must be made, but its filesystem has {left - 1} inodes left"
        assert refused.message == f"{few}/copy: {words}"
        assert os.listdir(few) == []


def test_inodes_that_others_take_meanwhile(runner: Runner, some: Path, area: Path, root: None) -> None:
    with filesystems.tmpfs(area / "few", 64 * MIB, "nr_inodes=40") as few:
        plan = runner.prepare("copy", source=some, path=few / "copy")
        for number in range(os.statvfs(few).f_favail - 10):
            (few / str(number)).touch()
        error = runner.failure(plan)
        assert (error.errno, error.message) == (errno.ENOSPC, f"{few}/copy: its filesystem has no inode left")


def test_inodes_that_the_kernel_does_not_count(runner: Runner, disk: Path, area: Path, root: None) -> None:
    """hugetlbfs with nr_inodes= and no size= reports none at all."""
    (disk / "source").mkdir()
    for number in range(8):
        (disk / f"source/{number}").touch()
    with filesystems.hugetlbfs(area / "few", 2 * MIB, "nr_inodes=5") as few:
        assert os.statvfs(few).f_files == 0
        error = runner.failure(runner.prepare("copy", source=disk / "source", path=few / "copy"))
        assert (error.errno, error.message) == (errno.ENOSPC, f"{few}/copy: its filesystem has no inode left")


def test_sparse_files_need_the_pages_of_their_data(runner: Runner, disk: Path, place: Place) -> None:
    """Also those that were allocated and never written."""
    (disk / "source").mkdir()
    with (disk / "source/sparse").open("wb") as file:
        file.truncate(1 << 34)
        for at in (5, (1 << 34) - 9):
            os.pwrite(file.fileno(), b"data", at)
    with (disk / "source/unwritten").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 300 * MIB)
    copied(runner, disk / "source", place.directory / "copy")
    assert (place.directory / "copy/unwritten").stat().st_size == 300 * MIB
    with (place.directory / "copy/sparse").open("rb") as copy:
        assert os.pread(copy.fileno(), 20, 0) == b"data".rjust(9, b"\0").ljust(20, b"\0")
        assert os.pread(copy.fileno(), 9, (1 << 34) - 9) == b"data".ljust(9, b"\0")
        assert os.fstat(copy.fileno()).st_blocks * 512 <= 2 * max(place.unit, 2 * MIB)


def test_root_may_fill_the_blocks_that_a_disk_keeps_for_it(runner: Runner, some: Path, area: Path, tmpfs: Path) -> None:
    """As with cp. Nobody else may."""
    make(tmpfs / "file")
    with filesystems.disk_image(area, *filesystems.EXT4, "-m", "20") as small:
        mount = os.statvfs(small)
        with (small / "others").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, mount.f_bavail * mount.f_frsize - (64 << 10))
        (small / "theirs").mkdir()
        os.chown(small / "theirs", 65534, 65534)

        def refusals() -> list[int]:
            sources = {"tree": some, "file": tmpfs / "file"}
            return [
                runner.refused("copy", source=path, path=small / "theirs" / name).errno
                for name, path in sources.items()
            ]

        some.parent.chmod(0o755)
        assert as_nobody(refusals) == [errno.ENOSPC] * 2
        copied(runner, some, small / "copy")
        assert traits(small / "copy") == traits(some)
        runner.run("copy", source=tmpfs / "file", path=small / "file")
        assert (small / "file").read_bytes() == (tmpfs / "file").read_bytes()


@hugepages.smallest_pages
def test_huge_pages_that_the_mount_has_set_aside(runner: Runner, some: Path, area: Path, page_size: int) -> None:
    """A plan, and a directory, may have them as a file may."""
    with hugepages.reserved(page_size, 32) as pool:
        options = f"mode=1777,min_size={pool.available * page_size}"
        with filesystems.hugetlbfs(area / "huge", page_size, options) as huge:
            before = os.listdir(huge), pool.reserved
            plan = runner.prepare("fallocate", path=huge / "file", length=4 * page_size, plan=1)
            assert f"\nallocates {4 * page_size}\n" in runner.result(plan)
            assert (os.listdir(huge), pool.reserved) == before
            copied(runner, some, huge / "copy")
            assert traits(huge / "copy") == traits(some)
            length = (pool.total + 1) * page_size
            assert isinstance(runner.refused("fallocate", path=huge / "file", length=length), OutOfHugePages)


@hugepages.smallest_pages
def test_data_in_pieces_needs_each_page_once(runner: Runner, disk: Path, area: Path, page_size: int) -> None:
    with hugepages.reserved(page_size, 4) as pool:
        (disk / "source").mkdir()
        with (disk / "source/image").open("wb") as file:
            file.truncate((pool.total + 1) * page_size)
            for at in range(0, 2 * page_size, page_size // 16):
                os.pwrite(file.fileno(), b"data", at)
        with filesystems.hugetlbfs(area / "huge", page_size) as huge:
            copied(runner, disk / "source", huge / "copy")
            assert (huge / "copy/image").stat().st_blocks * 512 == 2 * page_size


def test_the_directory_of_a_copy_takes_an_inode(runner: Runner, some: Path, area: Path, root: None) -> None:
    """Its plan is refused where the copy would be."""
    with filesystems.tmpfs(area / "few", 64 * MIB, "nr_inodes=100") as few:
        for number in range(os.statvfs(few).f_favail - 24):
            (few / str(number)).touch()
        assert isinstance(runner.refused("copy", source=some, path=few / "copy"), OutOfSpace)
        (few / "0").unlink()
        copied(runner, some, few / "copy")
