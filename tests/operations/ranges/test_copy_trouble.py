"""Copies that are refused, and files that are shortened, replaced, sealed or too small."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import InvalidValue, NotSupported, OutOfSpace, TargetError
from ktaskfs.host import userfaultfd
from ktaskfs.host.mapping import Mapping
from ktaskfs.ktask import NO_NODE, TaskError
from ktaskfs.span import Node
from tests.support import filesystems
from tests.support.forked import run_forked
from tests.support.hugepages import smallest_pages
from tests.support.memory_files import (
    HUGE,
    TIB,
    allocated,
    content,
    is_all,
    make_dirty,
    punch,
    same,
    write_bytes,
)
from tests.support.runner import SIZE, not_begun

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hugepages import TestPool
    from tests.support.runner import Place, Runner


def test_too_little_space(runner: Runner, area: Path, plain: Path) -> None:
    with filesystems.tmpfs(area / "small", 4 * HUGE) as small:
        assert isinstance(runner.refused("copy", source=plain, path=small / "file"), OutOfSpace)
        assert os.listdir(small) == []


@smallest_pages
def test_past_a_page_cache_that_cannot_be_passed(runner: Runner, pool: TestPool, hugetlbfs: Path, plain: Path) -> None:
    write_bytes(hugetlbfs / "source", content(HUGE))
    error = runner.refused("copy", source=hugetlbfs / "source", path=plain, direct=1)
    assert isinstance(error, NotSupported)
    assert "O_DIRECT" in error.message


def test_out_to_a_disk_that_is_too_small(runner: Runner, area: Path) -> None:
    with filesystems.tmpfs(area / "tmpfs", HUGE) as tmpfs:
        (tmpfs / "source").touch()
        os.truncate(tmpfs / "source", 12 * TIB)
        refused = runner.refused("copy", source=tmpfs / "source", path=area / "out", sparse=0)
        assert isinstance(refused, OutOfSpace)
        assert refused.message.startswith(f"{area}/out: 12.0TiB must be written, but its filesystem has ")
        assert not (area / "out").exists()
        runner.run("copy", source=tmpfs / "source", path=area / "out", chunk=TIB)
        assert ((area / "out").stat().st_size, allocated(area / "out")) == (12 * TIB, 0)


def test_refusals(runner: Runner, place: Place, plain: Path) -> None:
    path = place.directory / "file"
    assert "past the end" in runner.refused("copy", source=plain, path=path, source_offset=SIZE + 1).message
    assert "source_offset" in runner.refused("copy", source=plain, path=path, direct=1, source_offset=100).message
    assert "offset" in runner.refused("copy", source=plain, path=path, direct=1, offset=1234).message
    assert "largest file" in runner.refused("copy", source=plain, path=path, offset=2**63 - 5).message
    assert os.listdir(place.directory) == []
    path.touch()
    os.truncate(path, 2 * HUGE)
    assert "keep_size" in runner.refused("copy", source=plain, path=path, keep_size=1).message
    resumed = runner.refused("copy", [Node(HUGE, SIZE - HUGE, -1)], source=plain, path=path, digest="crc32")
    assert (type(resumed), "resume: " in resumed.message) == (NotSupported, True)
    assert path.stat().st_size == 2 * HUGE
    assert allocated(path) == 0


def test_ranges_of_one_file(runner: Runner, place: Place) -> None:
    path, link = place.directory / "file", place.directory / "other name"
    write_bytes(path, content(4 * HUGE))
    os.link(path, link)
    for offset, source_offset, length in ((0, 0, 1), (HUGE, 0, 4 * HUGE), (0, 1, HUGE), (HUGE, 0, HUGE + 1)):
        where = {"offset": offset, "source_offset": source_offset, "length": length}
        error = runner.refused("copy", source=path, path=link, **where)
        assert isinstance(error, InvalidValue)
        assert "overlap" in error.message
    runner.run("copy", source=path, path=link, offset=2 * HUGE, length=2 * HUGE)
    assert same(path, path, 2 * HUGE, (0, 2 * HUGE))
    runner.run("copy", source=path, path=link, offset=4 * HUGE, length=4 * HUGE)
    assert same(path, path, 4 * HUGE, (0, 4 * HUGE))


@pytest.mark.parametrize("digest", [{}, {"digest": "crc32"}], ids=["", "crc32"])
def test_the_source_is_shortened_meanwhile(runner: Runner, place: Place, plain: Path, digest: dict[str, str]) -> None:
    plan = runner.prepare("copy", source=plain, path=place.directory / "file", **digest)
    os.truncate(plain, 5 * HUGE + 17)
    error = runner.failure(plan)
    assert isinstance(error, TargetError)
    assert error.errno == errno.ENXIO
    assert str(plain) in error.message


def test_a_source_that_cannot_be_read(
    runner: Runner, place: Place, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without sendfile(2), the kernel returns EFAULT for a page in a mapping; read(2) of it returns the reason."""
    plan = runner.prepare("copy", source=plain, path=place.directory / "file")

    def broken(*arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    def missing(mapping: Mapping, start: int, length: int) -> None:
        raise OSError(errno.EFAULT, "Bad address")

    monkeypatch.setattr(os, "preadv", broken)
    monkeypatch.setattr(os, "sendfile", broken)
    monkeypatch.setattr(Mapping, "populate_read", missing)
    with pytest.raises(TargetError) as caught:
        plan.control.thread_func(0, HUGE)
    assert (caught.value.errno, caught.value.message) == (errno.EIO, f"read {plain}: Input/output error")
    plan.finish(not_begun(plan))


def test_what_only_close_reports_is_done_again(
    runner: Runner, plain: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where the data was lost by then. The error may be that of another thread's data."""
    path, real, errors = disk / "file", os.close, iter([errno.EIO])
    plan = runner.prepare("copy", source=plain, path=path)

    def close(fd: int) -> None:
        where = os.readlink(f"/proc/self/fd/{fd}")
        real(fd)
        if where == str(path) and (number := next(errors, 0)):
            os.truncate(path, 0)
            os.truncate(path, SIZE)
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        for position in (0, HUGE):
            with pytest.raises(TargetError) as caught:
                plan.control.thread_func(position, position + HUGE)
            assert (caught.value.errno, caught.value.message) == (errno.EIO, f"write {path}: Input/output error")
    plan.finish(not_begun(plan))
    runner.run("copy", [Node(0, SIZE, NO_NODE)], source=plain, path=path)
    assert same(plain, path, SIZE)


@pytest.mark.parametrize("digest", [{}, {"digest": "crc32"}], ids=["", "crc32"])
@pytest.mark.parametrize("to_disk", [False, True])
def test_the_target_is_shortened_meanwhile(
    runner: Runner, place: Place, disk: Path, plain: Path, to_disk: bool, digest: dict[str, str]
) -> None:
    """At the start, and after half of it; it is not extended again."""
    path = (disk if to_disk else place.directory) / "file"
    for done in (0, SIZE // 2, SIZE):
        plan = runner.prepare("copy", source=plain, path=path, **digest)
        if done:
            plan.control.thread_func(0, done)
        os.truncate(path, 4 * HUGE)
        rest = plan._replace(nodes=[Node(done, SIZE - done, NO_NODE)])
        with pytest.raises((TaskError, TargetError)) as caught:
            runner.work(rest)
        error = caught.value.error if isinstance(caught.value, TaskError) else caught.value
        assert isinstance(error, TargetError)
        assert (error.errno, path.stat().st_size) == (errno.ENXIO, 4 * HUGE)


def test_unlinked_and_replaced_meanwhile(runner: Runner, place: Place, plain: Path) -> None:
    path = place.directory / "file"
    plan = runner.prepare("copy", source=plain, path=path)
    path.unlink()
    path.touch()
    plain.unlink()
    plain.touch()
    runner.work(plan)
    assert allocated(path) == 0


def test_a_target_that_is_sealed_against_growing(runner: Runner, plain: Path) -> None:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    path = f"/proc/{os.getpid()}/fd/{fd}"
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    assert runner.refused("copy", source=plain, path=path).errno == errno.EPERM
    assert os.fstat(fd).st_size == 0
    os.close(fd)


@pytest.mark.parametrize("to_disk", [False, True])
def test_the_limit_of_file_sizes_is_not_met_halfway(
    runner: Runner, place: Place, disk: Path, plain: Path, to_disk: bool
) -> None:
    """write(2) applies the limit also to existing data; copies into huge pages do not use it."""
    path = (disk if to_disk else place.directory) / "file"
    make_dirty(path, SIZE)
    written = to_disk or os.stat(path).st_blksize == 4096

    def attempt() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (HUGE, resource.RLIM_INFINITY))
        if written:
            return runner.refused("copy", source=plain, path=path).errno
        runner.run("copy", source=plain, path=path)
        return 0

    assert run_forked(attempt) == (errno.EFBIG if written else 0)
    assert is_all(0xFF, path, 0, SIZE) if written else same(plain, path, SIZE)


def test_without_userfaultfd(runner: Runner, place: Place, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(features: int) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(userfaultfd, "create", forbidden)
    path, other = place.directory / "file", place.directory / "other"
    runner.run("copy", source=plain, path=path)
    punch(path, HUGE, HUGE)
    runner.run("copy", source=path, path=other)
    assert same(path, other, SIZE)
