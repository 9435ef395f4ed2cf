from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import Finding
from tests.operations.trees.ground import as_nobody, make, parsed
from tests.support import filesystems

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Place, Runner

MIB = 1 << 20


@pytest.fixture
def source(disk: Path) -> Path:
    top = disk / "source"
    for number in range(20):
        make(top / f"d{number % 3}/deep/f{number}")
    (top / "large").write_bytes(os.urandom(9 * MIB + 77))
    (top / "empty").touch()
    (top / "nothing/at/all").mkdir(parents=True)
    (top / "bad\udcff\nname").write_text("x")
    with (top / "sparse").open("wb") as file:
        file.seek(30 * MIB)
        file.write(b"end")
        file.truncate(40 * MIB)
    return top


@pytest.fixture
def copy(source: Path, disk: Path) -> Path:
    (source / "link").symlink_to("d0/deep/f0")
    os.mkfifo(source / "fifo")
    shutil.copytree(source, disk / "copy", symlinks=True, ignore=shutil.ignore_patterns("fifo"))
    os.mkfifo(disk / "copy/fifo")
    return disk / "copy"


def compared(runner: Runner, source: Path, path: Path, **texts: object) -> tuple[dict[str, int], list[str]]:
    """The counts that are not 0, and the rows."""
    text = runner.result(runner.prepare("compare", source=source, path=path, **texts))
    counts, _, rows = text.partition("what path\n")
    found = {name: value for name, value in parsed(counts).items() if name in ("differs", "missing", "kind", "extra")}
    return {name: value for name, value in found.items() if value}, sorted(rows.splitlines())


def test_two_that_are_alike(runner: Runner, source: Path, copy: Path) -> None:
    """Holes and data that is zeros are the same; modes and times do not count."""
    with (copy / "sparse").open("r+b") as file:
        file.write(bytes(MIB))
    (copy / "large").chmod(0o600)
    os.utime(copy / "large", (1, 1))
    assert compared(runner, source, copy) == ({}, [])
    assert compared(runner, copy, source) == ({}, [])


def test_whatever_differs_is_named(runner: Runner, source: Path, copy: Path) -> None:
    with (copy / "large").open("r+b") as file:
        file.seek(9 * MIB + 76)
        file.write(b"x" if (source / "large").read_bytes()[-1:] != b"x" else b"y")
    with (copy / "sparse").open("r+b") as file:
        file.seek(35 * MIB)
        file.write(b"y")
    with (copy / "d0/deep/f0").open("ab") as file:
        file.write(b"\0")
    (copy / "bad\udcff\nname").unlink()
    shutil.rmtree(copy / "nothing")
    (copy / "nothing").symlink_to("d0")
    (copy / "link").unlink()
    (copy / "link").symlink_to("d0/deep/f3")
    make(copy / "new/file")
    assert compared(runner, source, copy, chunk="1M") == (
        {"differs": 4, "missing": 3, "kind": 1, "extra": 2},
        [
            "differs d0/deep/f0",
            "differs large",
            "differs link",
            "differs sparse",
            "extra new",
            "extra new/file",
            "kind nothing",
            "missing bad\\377\\012name",
            "missing nothing/at",
            "missing nothing/at/all",
        ],
    )


def test_names_can_be_told_apart(runner: Runner, source: Path, copy: Path) -> None:
    for name in ("red\x1b", "red\\033"):
        (copy / name).touch()
    assert compared(runner, source, copy) == ({"extra": 2}, [r"extra red\033", r"extra red\134033"])


def test_whole_pages_at_the_end_are_no_difference(runner: Runner, source: Path, place: Place) -> None:
    runner.run("copy", source=source, path=place.directory / "copy")
    for one, two in ((source, place.directory / "copy"), (place.directory / "copy", source)):
        assert compared(runner, one, two) == ({}, [])


def test_what_cannot_be_read_fails(runner: Runner, source: Path, copy: Path, root: None) -> None:
    for path in (source, copy):
        path.chmod(0o755)
    (copy / "large").chmod(0o600)

    def failure() -> tuple[int, str]:
        with pytest.raises(Finding) as caught:
            runner.run("compare", source=source, path=copy)
        return caught.value.errno, caught.value.result

    number, text = as_nobody(failure)
    assert (number, text.endswith("reason path\nEACCES large\n")) == (errno.EACCES, True)
    (copy / "large").chmod(0o644)
    (copy / "d0").chmod(0o700)
    assert as_nobody(failure)[0] == errno.EACCES


def test_a_file_and_a_directory(runner: Runner, source: Path, copy: Path) -> None:
    for one, other in ((source, copy / "large"), (source / "large", copy)):
        refused = runner.refused("compare", source=one, path=other)
        file, directory = (one, other) if other is copy else (other, one)
        assert refused.errno == errno.ENOTDIR
        assert refused.message == f"{file} is not a directory, but {directory} is"
    assert runner.refused("compare", source=source, path=copy / "none").errno == errno.ENOENT
    assert runner.result(runner.prepare("compare", source=source / "large", path=copy / "large")) == "equal\n"


def test_files_that_vanish_or_become_others(runner: Runner, source: Path, copy: Path) -> None:
    plan = runner.prepare("compare", source=source, path=copy)
    (source / "d0/deep/f0").unlink()
    (copy / "d0/deep/f3").unlink()
    (copy / "d0/deep/f3").symlink_to("f6")
    with pytest.raises(Finding) as caught:
        runner.work(plan)
    assert caught.value.errno == errno.ENOENT
    assert "\nkind d0/deep/f3\n" in caught.value.result
    assert caught.value.result.endswith("reason path\ngone d0/deep/f0\n")


@pytest.mark.parametrize("at", ["source", "path"])
def test_what_is_mounted_on_either_side_is_counted(runner: Runner, disk: Path, at: str, root: None) -> None:
    """Nobody knows whether the files below differ: they are no difference and no failure."""
    for name in ("source", "path"):
        for inner in ("sub/deep", "rest"):
            (disk / name / inner).mkdir(parents=True)
            (disk / name / inner / "file").touch()
    texts = {"source": disk / "source", "path": disk / "path"}

    def told() -> dict[str, int]:
        return parsed(runner.result(runner.prepare("compare", **texts)).partition("what path\n")[0])

    with filesystems.tmpfs(disk / at / "sub/deep", MIB) as mounted:
        (mounted / "file").write_text("other")
        counts = told()
        assert (counts["mounts"], counts["skipped"], compared(runner, **texts)) == (1, 0, ({}, []))
        assert compared(runner, **texts, cross_mounts=1) == ({"differs": 1}, ["differs sub/deep/file"])
    file = disk / at / "rest/file"
    subprocess.run(["mount", "--bind", "/dev/null", file], check=True)
    try:
        counts = told()
    finally:
        subprocess.run(["umount", file], check=True)
    assert counts["skipped"] == 0
    assert counts["mounts"] + counts["kind"] + counts["extra"] == 1


def test_files_below_an_unreadable_directory_are_not_extra(
    runner: Runner, source: Path, copy: Path, root: None
) -> None:
    for path in (source, copy):
        path.chmod(0o755)
    make(copy / "d1/new")
    (source / "d0").chmod(0o700)
    (source / "d2").chmod(0o711)

    def failure() -> str:
        with pytest.raises(Finding) as caught:
            runner.run("compare", source=source, path=copy)
        return caught.value.result

    text = as_nobody(failure)
    assert "\nskipped_EACCES 2\n" in text
    assert [line for line in text.splitlines() if line.startswith("extra ")] == ["extra 1", "extra d1/new"]


def test_one_directory_in_several_runs_of_the_walk(runner: Runner, disk: Path) -> None:
    for name in ("source", "path"):
        for number in range(20):
            (disk / name / f"{number}d/{number}").mkdir(parents=True)
            (disk / name / f"{number}").touch()
    make(disk / "path/more")
    make(disk / "path/3d/3/more")
    assert compared(runner, disk / "source", disk / "path") == ({"extra": 2}, ["extra 3d/3/more", "extra more"])


def test_devices_with_other_numbers_differ(runner: Runner, disk: Path, root: None) -> None:
    for name in ("source", "path"):
        (disk / name).mkdir()
        os.mknod(disk / name / "same", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.mknod(disk / name / "other", stat.S_IFBLK | 0o600, os.makedev(7, 200 if name == "path" else 201))
    assert compared(runner, disk / "source", disk / "path") == ({"differs": 1}, ["differs other"])
