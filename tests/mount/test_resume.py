"""Resume after changes of the files: ``done`` always means that all of the work is in them."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from tests.mount.test_main_job import finish, start
from tests.support import filesystems, hugepages
from tests.support.poll import until
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount

SIZE = 64 << 20
HUGE = 2 << 20
F_SEAL_FUTURE_WRITE = 0x10

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def source(tmpfs: Path) -> Path:
    path = tmpfs / "source"
    path.write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
    return path


def cancelled(mount: Mount, spec: str) -> None:
    """Start a task named t, and cancel it when part of it is done; the rest is not slowed down."""
    start(mount, f"{spec} rate_max=1M chunk=2M name=t")
    until(lambda: not mount.read("tasks/t/progress").startswith("0 "), "something is done")
    assert mount.write("tasks/t/control", "cancel") == (0, None)
    finish(mount, "t", "cancelled")
    assert mount.write("tasks/t/rate_max", "max") == (0, None)


def resume(mount: Mount) -> tuple[str | None, str]:
    """The errno and the message of the write."""
    _, number = mount.write("tasks/t/control", "resume")
    return number, mount.read("info/last_cmd_status")


@pytest.mark.parametrize("again", [False, True], ids=["", "after a mount"])
@pytest.mark.parametrize("name", ["file", "source"])
def test_another_file(mount_maker: MountMaker, tmpfs: Path, source: Path, name: str, again: bool) -> None:
    mount = mount_maker()
    cancelled(mount, f"copy source={source} path={tmpfs}/file")
    if again:
        mount.close()
        mount = mount_maker(statedir=mount.statedir)
    path = tmpfs / name
    path.rename(tmpfs / "old")
    number, words = resume(mount)
    assert (number, path.exists()) == ("ENOENT", False)
    path.write_bytes(bytes(SIZE))
    number, words = resume(mount)
    assert (number, "is not the file of the task's start" in words) == ("ESTALE", True)
    assert path.read_bytes() == bytes(SIZE)
    (tmpfs / "old").rename(path)
    assert resume(mount) == (None, "ok\n")
    finish(mount, "t")
    assert run("cmp", str(source), str(tmpfs / "file")).status == 0


@pytest.mark.parametrize("operation", ["copy source={source}", "fallocate length=64M"])
def test_a_file_that_was_cut(mounted: Mount, tmpfs: Path, source: Path, operation: str) -> None:
    path = tmpfs / "file"
    cancelled(mounted, f"{operation.format(source=source)} path={path}")
    os.truncate(path, 1 << 20)
    number, words = resume(mounted)
    assert (number, "start a new task" in words) == ("ENXIO", True)
    assert path.stat().st_size == 1 << 20


def test_a_source_that_was_cut(mounted: Mount, tmpfs: Path, source: Path) -> None:
    cancelled(mounted, f"copy source={source} path={tmpfs}/file")
    os.truncate(source, SIZE - 1)
    number, words = resume(mounted)
    assert (number, "truncated" in words) == ("ENXIO", True)


def test_what_came_behind_the_range_of_free_is_kept(mounted: Mount, source: Path) -> None:
    cancelled(mounted, f"free path={source} shrink=1")
    with source.open("ab") as file:
        file.write(b"precious")
    number, words = resume(mounted)
    assert (number, "was extended" in words) == ("EBUSY", True)
    assert source.read_bytes().endswith(b"precious")
    os.truncate(source, SIZE)
    assert resume(mounted) == (None, "ok\n")
    finish(mounted, "t")
    assert source.stat().st_size == 0


def test_a_file_that_is_freed_and_removed(mounted: Mount, source: Path) -> None:
    cancelled(mounted, f"free path={source} unlink=1")
    assert resume(mounted) == (None, "ok\n")
    finish(mounted, "t")
    assert not source.exists()


def test_only_the_first_range_is_reserved(mounted: Mount, area: Path) -> None:
    """If the file was extended meanwhile, the task takes no pages for that part, and needs none in the pool."""
    with hugepages.reserved(HUGE, SIZE // HUGE) as pool, filesystems.hugetlbfs(area / "huge", HUGE) as huge:
        path, reserved = huge / "file", pool.reserved
        path.touch()
        os.truncate(path, SIZE)
        cancelled(mounted, f"fallocate path={path}")
        os.truncate(path, 4 * SIZE)
        assert resume(mounted) == (None, "ok\n")
        finish(mounted, "t")
        assert (path.stat().st_size, path.stat().st_blocks * 512) == (4 * SIZE, SIZE)
        assert pool.reserved == reserved


@pytest.mark.parametrize("mode", ["r+b", "ab"])
def test_a_source_that_was_written_to(mounted: Mount, tmpfs: Path, source: Path, mode: str) -> None:
    """The target would be a mixture; or not, if the source has only grown, but its time does not say that."""
    cancelled(mounted, f"copy source={source} path={tmpfs}/file")
    before, some = source.stat(), source.read_bytes()[:4]
    with source.open(mode) as file:
        file.write(some)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # two ticks of its clock may be one
    number, words = resume(mounted)
    assert (number, "changed since the task began" in words) == ("ESTALE", True)
    os.truncate(source, SIZE)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert resume(mounted) == (None, "ok\n")
    finish(mounted, "t")
    assert run("cmp", str(source), str(tmpfs / "file")).status == 0


def test_a_source_that_the_task_itself_writes_to(mounted: Mount, source: Path) -> None:
    cancelled(mounted, f"copy source={source} path={source} offset={SIZE}")
    assert resume(mounted) == (None, "ok\n")
    finish(mounted, "t")
    assert source.stat().st_size == 2 * SIZE
    assert run("cmp", "-n", str(SIZE), "-i", f"0:{SIZE}", str(source), str(source)).status == 0


def test_an_undo_that_fails_is_told(mounted: Mount) -> None:
    """Beside the reason for which it was needed."""
    fd = os.memfd_create("target", os.MFD_ALLOW_SEALING)
    try:
        start(mounted, f"fallocate path=/proc/{os.getpid()}/fd/{fd} length=64M undo=1 rate_max=1M chunk=2M name=t")
        until(lambda: not mounted.read("tasks/t/progress").startswith("0 "), "something is done")
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
        os.truncate(fd, 2 << 20)
        assert mounted.write("tasks/t/rate_max", "max") == (0, None)
        finish(mounted, "t", "failed")
        error = mounted.read("tasks/t/error")
        assert error.startswith("ENXIO")
        assert "truncated" in error
        assert "undo failed" in error
    finally:
        os.close(fd)
