"""What the rest of a task may rest on: whatever became of its files, ``done`` means that all of it is there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.mount.test_main_job import finish, start
from tests.support.poll import until
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount

SIZE = 64 << 20


@pytest.fixture
def source(tmpfs: Path) -> Path:
    path = tmpfs / "source"
    path.write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
    return path


def cancelled(mount: Mount, spec: str) -> None:
    """Start a task named t, and cancel it when some of it is done; what follows is not slowed down."""
    start(mount, f"{spec} rate_max=16M chunk=2M name=t")
    until(lambda: not mount.read("tasks/t/progress").startswith("0 "), "something is done")
    assert mount.write("tasks/t/control", "cancel") == (0, None)
    finish(mount, "t", "cancelled")
    assert mount.write("tasks/t/rate_max", "max") == (0, None)


def resume(mount: Mount) -> tuple[str | None, str]:
    """The errno of the write, and what is said of it."""
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
    assert (number, "not the file any more" in words) == ("ESTALE", True)
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
    assert (number, "start the task anew" in words) == ("ENXIO", True)
    assert path.stat().st_size == 1 << 20


def test_a_source_that_has_grown(mounted: Mount, tmpfs: Path, source: Path) -> None:
    cancelled(mounted, f"copy source={source} path={tmpfs}/file")
    with source.open("ab") as file:
        file.write(b"more")
    assert resume(mounted) == (None, "ok\n")
    finish(mounted, "t")
    assert (tmpfs / "file").stat().st_size == SIZE
    assert run("cmp", "-n", str(SIZE), str(source), str(tmpfs / "file")).status == 0
