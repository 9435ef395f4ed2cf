"""``copy`` of a directory: the end of a copy of which an earlier run has done all chunks."""

from __future__ import annotations

import errno
import os
import resource
import signal
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import TargetError
from ktaskfs.ktask import Job
from ktaskfs.operations.trees._files import FileList
from tests.operations.trees.ground import SIZE, as_nobody, make, parsed
from tests.operations.trees.test_copy import failed, traits
from tests.support.forked import Died, run_forked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ktaskfs.errors import Finding
    from tests.support.runner import Runner

MIB = 1 << 20


@pytest.fixture
def with_large(disk: Path) -> Path:
    """A source with a file that several chunks share."""
    large = make(disk / "source/large")
    large.write_bytes(os.urandom(33 * MIB))
    make(disk / "source/small")
    return disk / "source"


def rows(finding: Finding) -> set[str]:
    return set(finding.result.partition("reason path\n")[2].splitlines())


def test_a_resume_names_or_copies_what_the_earlier_run_skipped(
    runner: Runner, with_large: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier run was killed after all chunks, so its result is lost."""
    real = os.sendfile

    def sendfile(target: int, source: int, position: int, count: int) -> int:
        if position + count > 32 * MIB or os.readlink(f"/proc/self/fd/{source}").endswith("small"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(target, source, position, count)

    make(with_large / "gone")
    texts = {"source": with_large, "path": disk / "copy"}
    with monkeypatch.context() as patch:
        patch.setattr(os, "sendfile", sendfile)
        named = rows(failed(runner, **texts))
        assert named == {"EIO large", "EIO small"}
        assert rows(failed(runner, [], **texts)) == named
    (disk / "copy/gone").unlink()
    runner.run("copy", [], **texts)
    assert traits(disk / "copy") == traits(with_large)


def test_a_large_file_whose_source_could_not_be_opened_once_is_incomplete(
    runner: Runner, with_large: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other parts are there. No file that lacks a part is left behind, and a resume copies it."""
    real, failures = FileList.open_data, iter([OSError(errno.EIO, os.strerror(errno.EIO))])

    def open_file(files: FileList, index: int) -> int:
        if files.path(index) == "large" and (failure := next(failures, None)) is not None:
            raise failure
        return real(files, index)

    texts = {"source": with_large, "path": disk / "copy"}
    monkeypatch.setattr(FileList, "open_data", open_file)
    found = failed(runner, **texts)
    assert rows(found) == {"EIO large"}
    assert parsed(found.result)["bytes"] == SIZE, "those of complete files"
    assert not (disk / "copy/large").exists()
    runner.run("copy", [], **texts)
    assert traits(disk / "copy") == traits(with_large)


def test_a_resume_in_a_directory_that_became_unwritable_says_so(runner: Runner, disk: Path, root: None) -> None:
    make(disk / "source/a/file").chmod(0o000)
    (disk / "source/a").chmod(0o555)
    (disk / "theirs").mkdir()
    os.chown(disk / "theirs", 65534, 65534)
    texts = {"source": disk / "source", "path": disk / "theirs/copy"}

    def body() -> str:
        failed(runner, **texts)
        (disk / "theirs/copy/a").chmod(0o555)
        return failed(runner, [], **texts).result

    assert "EACCES a/file" in as_nobody(body)


def test_a_resume_keeps_a_large_file_that_is_complete_and_unwritable(
    runner: Runner, with_large: Path, disk: Path, root: None
) -> None:
    """The earlier run was killed while it gave the last files their modes."""
    (with_large / "large").chmod(0o444)
    (disk / "theirs").mkdir()
    os.chown(disk / "theirs", 65534, 65534)

    def body() -> None:
        runner.run("copy", source=with_large, path=disk / "theirs/copy")
        runner.run("copy", [], source=with_large, path=disk / "theirs/copy")

    as_nobody(body)
    assert traits(disk / "theirs/copy") == traits(with_large)


def test_a_resume_corrects_a_time_that_is_only_a_second_off(runner: Runner, with_large: Path, disk: Path) -> None:
    """The earlier run was killed before it set the time of a file that was written a moment before."""
    (with_large / "large").chmod(0o600)
    texts = {"source": with_large, "path": disk / "copy"}
    runner.run("copy", **texts)
    time = (with_large / "large").stat().st_mtime_ns
    os.utime(disk / "copy/large", ns=(time, time + 1_500_000_000))
    runner.run("copy", [], **texts)
    assert traits(disk / "copy") == traits(with_large)


def without_modes(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """As on vfat, chmod(2) succeeds and changes nothing; ``broken`` cannot be read to its end."""
    real = os.sendfile

    def sendfile(target: int, source: int, position: int, count: int) -> int:
        if os.readlink(f"/proc/self/fd/{source}").endswith(broken) and position + count > 32 * MIB * (
            broken == "large"
        ):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(target, source, position, count)

    monkeypatch.setattr(os, "sendfile", sendfile)
    monkeypatch.setattr(os, "fchmod", lambda fd, mode: None)


def without_one_mode(monkeypatch: pytest.MonkeyPatch, _: str) -> None:
    """The mode of the small file is refused."""
    real = os.fchmod

    def fchmod(fd: int, mode: int) -> None:
        if mode == 0o640:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        real(fd, mode)

    monkeypatch.setattr(os, "fchmod", fchmod)


@pytest.mark.parametrize(
    ("breaks", "broken", "reason"),
    [(without_one_mode, "small", "EPERM"), (without_modes, "small", "EIO"), (without_modes, "large", "EIO")],
)
def test_a_resume_names_a_file_that_still_cannot_be_copied(
    runner: Runner,
    with_large: Path,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[pytest.MonkeyPatch, str], None],
    broken: str,
    reason: str,
) -> None:
    """A file that lacks a part is removed, and one that lacks only its mode stays."""
    (with_large / "small").chmod(0o640)
    texts = {"source": with_large, "path": disk / "copy"}
    copy = disk / "copy" / broken
    with monkeypatch.context() as patch:
        breaks(patch, broken)
        for resumed in (False, True):
            assert rows(failed(runner, [] if resumed else None, **texts)) == {f"{reason} {broken}"}
            assert copy.exists() == (reason == "EPERM")
    runner.run("copy", [], **texts)
    assert traits(disk / "copy") == traits(with_large)


def test_a_large_file_that_lacks_a_part_is_known_to_a_resume_without_modes(
    runner: Runner, with_large: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier run was killed after that part, before its end."""
    texts = {"source": with_large, "path": disk / "copy"}
    with monkeypatch.context() as patch:
        without_modes(patch, "large")
        plan = runner.prepare("copy", **texts)
        Job(plan.nodes, plan.control).run()
        plan.abort()
        assert (disk / "copy/large").stat().st_size == 33 * MIB + 1
    runner.run("copy", [], **texts)
    assert traits(disk / "copy") == traits(with_large)


@pytest.mark.parametrize("modes", [False, True])
@pytest.mark.parametrize("name", ["large", "small"])
def test_a_resume_that_ends_within_a_file_that_was_skipped(
    runner: Runner, with_large: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, modes: bool, name: str
) -> None:
    """It copies that file at its end, after all chunks. The next resume completes it."""
    real = os.sendfile
    texts = {"source": with_large, "path": disk / "copy"}

    def fails(number: int, least: int) -> Callable[..., int]:
        def sendfile(target: int, source: int, position: int, count: int) -> int:
            if position >= least and os.readlink(f"/proc/self/fd/{source}").endswith(name):
                raise OSError(number, os.strerror(number))
            return real(target, source, position, min(count, 64 << 10))

        return sendfile

    with monkeypatch.context() as patch:
        if not modes:
            patch.setattr(os, "fchmod", lambda fd, mode: None)
        patch.setattr(os, "sendfile", fails(errno.EIO, 0))
        assert rows(failed(runner, **texts)) == {f"EIO {name}"}
        patch.setattr(os, "sendfile", fails(errno.ENOSPC, 64 << 10))
        with pytest.raises(TargetError) as caught:
            runner.run("copy", [], **texts)
        assert caught.value.errno == errno.ENOSPC
    runner.run("copy", [], **texts)
    assert traits(disk / "copy") == traits(with_large)


def test_a_large_file_that_lacks_a_part_and_can_have_no_mark_ends_the_task(
    runner: Runner, with_large: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume repeats the chunk."""
    without_modes(monkeypatch, "large")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (33 * MIB, before[1]))
    try:
        error = runner.failure(runner.prepare("copy", source=with_large, path=disk / "copy"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.errno == errno.EIO
    assert "/copy/large, where the filesystem keeps no mark of an incomplete file: " in error.message


@pytest.mark.parametrize("name", ["large", "small"])
@pytest.mark.parametrize("mode", [0o444, 0o555])
def test_a_resume_accepts_an_unwritable_file_whose_time_or_mode_was_rounded(
    runner: Runner, with_large: Path, disk: Path, root: None, name: str, mode: int
) -> None:
    """As by filesystems of DOS: times of two seconds, and no mode but that a file is read-only."""
    (with_large / name).chmod(0o444)
    (disk / "theirs").mkdir()
    os.chown(disk / "theirs", 65534, 65534)
    copy = disk / "theirs/copy" / name

    def body() -> None:
        runner.run("copy", source=with_large, path=disk / "theirs/copy")
        os.utime(copy, ns=(0, copy.stat().st_mtime_ns // 2_000_000_000 * 2_000_000_000))
        copy.chmod(mode)
        runner.run("copy", [], source=with_large, path=disk / "theirs/copy")

    as_nobody(body)
    assert copy.read_bytes() == (with_large / name).read_bytes()
    assert copy.stat().st_mode & 0o777 == 0o444


def test_a_resume_replaces_no_file_of_another_size(runner: Runner, with_large: Path, disk: Path) -> None:
    """It may be another file of the copy, whose name the filesystem takes for the same, or somebody's changes."""
    texts = {"source": with_large, "path": disk / "copy"}
    runner.run("copy", **texts)
    for size in (5, 40 * MIB):
        os.truncate(disk / "copy/small", size)
        assert rows(failed(runner, [], **texts)) == {"EEXIST small"}
        assert (disk / "copy/small").stat().st_size == size
    os.truncate(disk / "copy/small", 0)
    runner.run("copy", [], **texts)
    assert traits(disk / "copy") == traits(with_large)


def test_a_resume_that_is_killed_when_it_has_just_made_a_file(runner: Runner, with_large: Path, disk: Path) -> None:
    """The next one does not take the file for complete."""
    texts = {"source": with_large, "path": disk / "copy"}
    runner.run("copy", **texts)
    (disk / "copy/small").unlink()

    def killed() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fchmod", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            runner.run("copy", [], **texts)

    with pytest.raises(Died) as caught:
        run_forked(killed)
    assert os.WTERMSIG(caught.value.status) == signal.SIGKILL
    assert (disk / "copy/small").exists()
    runner.run("copy", [], **texts)
    assert traits(disk / "copy") == traits(with_large)
