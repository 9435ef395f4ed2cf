"""``copy`` of a directory: targets that are peculiar, or not the task's alone."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import gc
import os
import resource
import stat
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import Finding, KtaskfsError, TargetError
from ktaskfs.host import syscalls
from ktaskfs.ktask import Job, TaskError
from tests.operations.trees.ground import as_nobody, make, parsed
from tests.operations.trees.test_copy import copied, failed, traits
from tests.operations.trees.test_copy_resume import rows, with_large
from tests.support import filesystems

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ktaskfs.span import Node
    from tests.support.runner import Runner

__all__ = ["with_large"]

MIB = 1 << 20
SHUT_DOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN: from then on everything fails with EIO, as when a disk dies."""


def in_one_thread(runner: Runner, remaining: Sequence[Node] | None = None, /, **texts: object) -> None:
    """Do all chunks of a run that is killed before its end, which closes what it has open."""
    plan = runner.prepare("copy", remaining, **texts)
    least = plan.control.min_chunk_size
    try:
        Job(plan.nodes, dataclasses.replace(plan.control, max_threads=1, max_chunk_size=least)).run()
    finally:
        plan.abort()


def test_names_that_are_one_on_the_target(runner: Runner, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on vfat: no file of the copy takes the place of another one."""
    for name in ("a", "A"):
        make(disk / "source" / name)
    real = os.open

    def fold(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        return real("a" if path == "A" and flags & os.O_CREAT else path, flags, mode, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fold)
        (row,) = rows(failed(runner, source=disk / "source", path=disk / "copy"))
    reason, skipped = row.split()
    assert reason == "EEXIST"
    kept = {"a": "A", "A": "a"}[skipped]
    assert (disk / "copy/a").read_bytes() == (disk / "source" / kept).read_bytes()


def test_a_link_whose_times_cannot_be_set(runner: Runner, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sshfs follows it, and ENOENT says that it leads nowhere."""
    real = os.utime

    def follow(
        path: str | int, *, ns: tuple[int, int], dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> None:
        assert follow_symlinks or dir_fd is not None
        real(path, ns=ns, dir_fd=dir_fd)

    make(disk / "source/file")
    (disk / "source/link").symlink_to("nowhere")
    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", follow)
        assert copied(runner, disk / "source", disk / "copy")["links"] == 1
    assert os.readlink(disk / "copy/link") == "nowhere"


def test_two_tasks_do_not_mix_their_files(runner: Runner, disk: Path) -> None:
    """The directory was empty when both began."""
    for name in ("one", "two"):
        make(disk / name / "file")
    plans = [runner.prepare("copy", source=disk / name, path=disk / "copy") for name in ("one", "two")]
    runner.work(plans[0])
    with pytest.raises(KtaskfsError) as caught:
        runner.work(plans[1])
    assert caught.value.errno == errno.EEXIST
    assert (disk / "copy/file").read_bytes() == (disk / "one/file").read_bytes()


def test_new_files_that_belong_to_somebody_else(
    runner: Runner, with_large: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS with root_squash, or vfat with uid=: to this task they are not those of its caller."""
    texts = {"source": with_large, "path": disk / "copy"}
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    runner.run("copy", **texts)
    assert traits(disk / "copy") == traits(with_large)
    os.truncate(disk / "copy/large", 0)
    (disk / "copy/small").unlink()
    runner.run("copy", [], **texts)
    assert traits(disk / "copy") == traits(with_large)


def test_a_directory_of_somebody_else_is_filled_and_keeps_its_mode(
    runner: Runner, with_large: Path, disk: Path, root: None
) -> None:
    theirs = disk / "theirs"
    theirs.mkdir()
    theirs.chmod(0o1777)
    text = as_nobody(lambda: runner.result(runner.prepare("copy", source=with_large, path=theirs)))
    assert (parsed(text)["files"], parsed(text)["skipped"]) == (2, 0)
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o1777
    assert (theirs / "large").read_bytes() == (with_large / "large").read_bytes()


@pytest.mark.parametrize("size", [2 * MIB, 40 * MIB])
def test_a_file_that_is_too_large_for_the_target_is_left_out(runner: Runner, disk: Path, size: int) -> None:
    """The next one need not be, and nothing of it stays."""
    for name in ("first", "huge", "last"):
        make(disk / "source" / name)
    os.truncate(disk / "source/huge", size)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    try:
        named = rows(failed(runner, source=disk / "source", path=disk / "copy"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert named == {"EFBIG huge"}
    assert sorted(os.listdir(disk / "copy")) == ["first", "last"]


def test_a_filesystem_that_tells_nothing_of_itself(runner: Runner, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server that answers EIO to statfs(2)."""
    (disk / "source").mkdir()
    path, real = disk / "copy", syscalls.filesystem_magic

    def magic(fd: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}") == str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd)

    monkeypatch.setattr(syscalls, "filesystem_magic", magic)
    with pytest.raises(TargetError) as caught:
        runner.prepare("copy", source=disk / "source", path=path)
    assert (caught.value.errno, caught.value.message) == (errno.EIO, f"open {path}: Input/output error")
    assert not path.exists()


@pytest.mark.parametrize("name", ["large", "small"])
def test_what_only_close_reports_is_no_complete_file(
    runner: Runner, with_large: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As on NFS, where the data was lost by then. The run is killed before its end, and resumed."""
    texts = {"source": with_large, "path": disk / "copy"}
    copy, real, errors = disk / "copy" / name, os.close, iter([errno.EIO])

    def close(fd: int) -> None:
        where = os.readlink(f"/proc/self/fd/{fd}")
        real(fd)
        if where == str(copy) and (number := next(errors, 0)):
            with copy.open("r+b") as file:
                file.write(bytes(4096))
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        in_one_thread(runner, None, **texts)
    assert next(errors, None) is None
    runner.run("copy", [], **texts)
    assert traits(disk / "copy") == traits(with_large)


def test_a_large_file_that_gets_a_second_name_meanwhile(
    runner: Runner, with_large: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second part is refused then. A resume copies that part, when the name is gone."""
    texts = {"source": with_large, "path": disk / "copy"}
    other, real = disk / "other", os.sendfile

    def sendfile(target: int, source: int, position: int, count: int) -> int:
        if os.readlink(f"/proc/self/fd/{source}").endswith("large") and not other.exists():
            os.link(disk / "copy/large", other)
        return real(target, source, position, count)

    with monkeypatch.context() as patch:
        patch.setattr(os, "sendfile", sendfile)
        with pytest.raises(TaskError) as caught:
            in_one_thread(runner, None, **texts)
    assert isinstance(caught.value.error, KtaskfsError)
    assert caught.value.error.errno == errno.EEXIST
    other.unlink()
    runner.run("copy", caught.value.outcome.remaining(), **texts)
    assert traits(disk / "copy") == traits(with_large)


@pytest.mark.parametrize("earlier", [False, True], ids=["new", "resumed"])
def test_a_part_of_a_large_file_that_was_refused_once(
    runner: Runner, with_large: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    """The open of the first part fails, that of the second would not. Nothing then looks like a complete file."""
    texts: dict[str, object] = {"source": with_large, "path": disk / "copy"}
    remaining: Sequence[Node] | None = None
    if earlier:
        with pytest.raises(TaskError) as caught:
            fail_at_second_part(runner, monkeypatch, texts)
        remaining = caught.value.outcome.remaining()
    real, failures = os.open, iter([errno.EMFILE])

    def refuse(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "large" and flags & os.O_RDWR and (number := next(failures, 0)):
            raise OSError(number, os.strerror(number))
        return real(path, flags, mode, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        try:
            in_one_thread(runner, remaining, **texts)
            remaining = []
        except TaskError as error:
            remaining = error.outcome.remaining()
    assert next(failures, None) is None
    runner.run("copy", remaining, **texts)
    assert traits(disk / "copy") == traits(with_large)


def fail_at_second_part(runner: Runner, monkeypatch: pytest.MonkeyPatch, texts: dict[str, object]) -> None:
    """A run that stops after the first part of the large file."""
    real = os.sendfile

    def sendfile(target: int, source: int, position: int, count: int) -> int:
        if position + count > 32 * MIB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(target, source, position, count)

    with monkeypatch.context() as patch:
        patch.setattr(os, "sendfile", sendfile)
        in_one_thread(runner, None, **texts)


def test_a_target_that_becomes_read_only_before_the_first_file(
    runner: Runner, with_large: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new directory stays, which is an error, and nothing stays open."""
    gc.collect()
    before = os.listdir("/proc/self/fd")
    plan = runner.prepare("copy", source=with_large, path=disk / "copy")

    def rmdir(path: str, *, dir_fd: int | None = None) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "rmdir", rmdir)
    with pytest.raises(OSError, match="Read-only"):
        plan.abort()
    assert os.listdir("/proc/self/fd") == before


def test_a_disk_that_dies_is_reported_with_all_that_was_skipped(runner: Runner, disk: Path, root: None) -> None:
    """The copy's own directory cannot be completed either, and is named like the files."""
    make(disk / "source/one")
    make(disk / "source/two")
    with filesystems.disk_image(disk, *filesystems.EXT4) as dying:
        plan = runner.prepare("copy", source=disk / "source", path=dying / "copy", digest="sha256sum")
        top = os.open(dying, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(top, SHUT_DOWN, bytes(4))
        finally:
            os.close(top)
        with pytest.raises(Finding, match="3 skipped: Input/output error") as caught:
            runner.result(plan)
    assert caught.value.errno == errno.EIO
    assert sorted(rows(caught.value)) == ["# EIO .", "# EIO one", "# EIO two"]


def test_what_somebody_else_makes_meanwhile_stays(runner: Runner, with_large: Path, disk: Path) -> None:
    """Even if it is longer than the file of that name would be, like a file that lacks a part where there are no
    modes."""
    make(with_large / "gone")
    plan = runner.prepare("copy", source=with_large, path=disk / "copy")
    theirs = {name: make(disk / "copy" / name) for name in ("gone", "large", "small")}
    for path in theirs.values():
        os.truncate(path, 40 * MIB)
    (with_large / "gone").unlink()
    before = {name: path.read_bytes() for name, path in theirs.items()}
    with pytest.raises(Finding) as caught:
        runner.work(plan)
    assert rows(caught.value) == {"gone gone", "EEXIST large", "EEXIST small"}
    assert {name: path.read_bytes() for name, path in theirs.items()} == before


def test_a_directory_that_cannot_be_completed_is_no_file_less(runner: Runner, with_large: Path, disk: Path) -> None:
    """It was removed from the source before it could give its mode."""
    (with_large / "directory").mkdir()
    plan = runner.prepare("copy", source=with_large, path=disk / "copy")
    outcome = Job(plan.nodes, plan.control).run()
    (with_large / "directory").rmdir()
    with pytest.raises(Finding) as caught:
        plan.finish(outcome)
    assert rows(caught.value) == {"gone directory"}
    assert [parsed(caught.value.result)[name] for name in ("files", "directories")] == [2, 0]


@pytest.mark.parametrize(("earlier", "named"), [(False, "gone"), (True, "gone"), (True, "ENXIO")])
def test_a_large_file_that_has_lost_its_first_part_is_no_complete_file(
    runner: Runner, with_large: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool, named: str
) -> None:
    """It was removed, or cut. It is named, and the next resume copies all of it."""
    texts: dict[str, object] = {"source": with_large, "path": disk / "copy"}
    remaining: Sequence[Node] | None = None
    copy, real = disk / "copy/large", os.sendfile

    def sendfile(target: int, source: int, position: int, count: int) -> int:
        sent = real(target, source, position, count)
        if position + sent == 32 * MIB:
            copy.unlink()
        return sent

    with monkeypatch.context() as patch:
        if earlier:
            with pytest.raises(TaskError) as caught:
                fail_at_second_part(runner, patch, texts)
            remaining = caught.value.outcome.remaining()
            if named == "gone":
                copy.unlink()
            else:
                os.truncate(copy, 5)
        else:
            patch.setattr(os, "sendfile", sendfile)
        plan = runner.prepare("copy", remaining, **texts)
        with pytest.raises(Finding) as found:
            runner.work(plan, threads=1, max_chunk_size=MIB)
        assert rows(found.value) == {f"{named} large"}
    assert not copy.exists()
    runner.run("copy", [], **texts)
    assert traits(disk / "copy") == traits(with_large)
