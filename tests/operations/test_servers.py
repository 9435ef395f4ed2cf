"""Files of a FUSE server that lacks a call, does not tell its room, or has died."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import Finding
from tests.operations.trees.ground import make, parsed
from tests.operations.trees.test_copy import copied, failed, traits
from tests.operations.trees.test_copy_resume import rows
from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.runner import Runner

pytestmark = pytest.mark.usefixtures("root")
NAMES = ("first", "second", "third")


@contextlib.contextmanager
def server(point: Path, *refusals: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that has mounted on the new directory ``point``."""
    point.mkdir()
    child = subprocess.Popen([sys.executable, "-m", "tests.support.odd_server", str(point), *refusals])
    try:
        until(lambda: child.poll() is not None or os.path.ismount(point), "the server mounts")
        yield child
    finally:
        subprocess.run(["umount", str(point)], check=True)
        child.wait()


def fill(directory: Path) -> Path:
    for name in NAMES:
        make(directory / name).chmod(0o640)
    return directory


@pytest.mark.parametrize("operation", ["copy", "checksum", "compare"])
def test_a_file_without_a_call_is_skipped_alone(runner: Runner, disk: Path, operation: str) -> None:
    other = disk / "other"
    with server(disk / "mount", "read:second=ENOSYS"):
        source = fill(disk / "mount")
        for name in NAMES:  # the kernel keeps what was written
            with (source / name).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if operation != "copy":
            fill(other)
        texts = {"path": other, "source": source} if operation != "checksum" else {"path": source}
        with pytest.raises(Finding) as caught:
            runner.run(operation, **texts)
    assert (caught.value.errno, caught.value.result.split()[-2:]) == (errno.ENOSYS, ["ENOSYS", "second"])
    if operation == "copy":
        assert sorted(os.listdir(other)) == ["first", "third"]


def test_times_that_cannot_be_set(runner: Runner, disk: Path) -> None:
    """Each file is complete, and has its mode."""
    source = fill(disk / "source")
    with server(disk / "mount", "utime=ENOSYS"):
        assert rows(failed(runner, source=source, path=disk / "mount")) == {f"ENOSYS {name}" for name in (*NAMES, ".")}
        for name in NAMES:
            assert (disk / "mount" / name).read_bytes() == (source / name).read_bytes()
            assert stat.S_IMODE((disk / "mount" / name).stat().st_mode) == 0o640


@pytest.mark.parametrize("refusals", [(), ("statfs=ENOSYS",)], ids=["zeros", "ENOSYS"])
def test_a_server_that_does_not_tell_its_room(runner: Runner, disk: Path, refusals: tuple[str, ...]) -> None:
    source = fill(disk / "source")
    with server(disk / "mount", *refusals):
        assert copied(runner, source, disk / "mount")["files"] == len(NAMES)
        runner.run("copy", source=source / "first", path=disk / "mount/new")
        assert (disk / "mount/new").read_bytes() == (source / "first").read_bytes()


@pytest.mark.parametrize("operation", ["checksum", "evict", "prefetch", "survey"])
def test_a_dead_server(runner: Runner, disk: Path, operation: str) -> None:
    point = disk / "mount"
    with server(point) as child:
        child.kill()
        child.wait()
        error = runner.refused(operation, path=point)
    assert error.errno == errno.ENOTCONN
    assert str(point) in error.message


def test_a_server_without_truncate(runner: Runner, disk: Path) -> None:
    """A write makes a file longer there, also one that ends in a hole, or of which several threads copy parts."""
    source = fill(disk / "source")
    (source / "empty").touch()
    os.truncate(make(source / "hole"), 1 << 20)
    os.truncate(make(source / "large"), 40 << 20)
    with server(disk / "mount", "truncate=ENOSYS"):
        copied(runner, source, disk / "mount")
        assert traits(disk / "mount") == traits(source)
        text = runner.result(runner.prepare("compare", source=source, path=disk / "mount"))
        assert [parsed(text.partition("what path\n")[0])[name] for name in ("files", "differs")] == [6, 0]
