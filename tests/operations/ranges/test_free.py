from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import InvalidValue, TargetError
from ktaskfs.host import syscalls
from ktaskfs.ktask import NO_NODE
from ktaskfs.span import Node
from ktaskfs.units import SIZE_MAX
from tests.support import filesystems
from tests.support.as_caller import NOBODY, as_nobody
from tests.support.memory_files import HUGE, TIB, allocated, is_all, make_dirty
from tests.support.runner import not_begun

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hugepages import TestPool
    from tests.support.runner import Place, Runner


def unit_of(place: Place) -> int:
    """The unit that can always be freed: a huge page of tmpfs can only be freed as a whole."""
    return max(place.unit, HUGE)


def test_gives_all_pages_back(runner: Runner, any_place: Place) -> None:
    unit = unit_of(any_place)
    path, length = any_place.directory / "file", 2 * unit
    make_dirty(path, length)
    before = os.listdir("/proc/self/fd")
    runner.run("free", path=path)
    assert (allocated(path), path.stat().st_size) == (0, length)
    assert is_all(0, path, 0, length)
    assert os.listdir("/proc/self/fd") == before


def test_the_pool_has_them_again(runner: Runner, pool: TestPool, hugetlbfs: Path) -> None:
    path, before = hugetlbfs / "file", pool.available
    make_dirty(path, 2 * pool.page_size)
    assert pool.available == before - 2
    runner.run("free", path=path, offset=pool.page_size)
    assert pool.available == before - 1
    runner.run("free", path=path)
    assert pool.available == before


def test_gives_nothing_else_back(runner: Runner, place: Place) -> None:
    path = place.directory / "file"
    make_dirty(path, 8 * HUGE)
    runner.run("free", path=path, offset=2 * HUGE, length=3 * HUGE, chunk=HUGE)
    assert allocated(path) == 5 * HUGE
    assert is_all(0xFF, path, 0, 2 * HUGE)
    assert is_all(0, path, 2 * HUGE, 5 * HUGE)
    assert is_all(0xFF, path, 5 * HUGE, 8 * HUGE)


def test_the_last_page_of_an_odd_size(runner: Runner, tmpfs: Path) -> None:
    path = tmpfs / "file"
    path.write_bytes(b"x" * 10000)
    runner.run("free", path=path, offset=4096)
    assert path.stat().st_size == 10000
    assert path.read_bytes() == b"x" * 4096 + bytes(5904)
    runner.run("free", path=path)
    assert allocated(path) == 0


@pytest.mark.parametrize("keep", [0, 1])
def test_shrinks_the_file(runner: Runner, place: Place, keep: int) -> None:
    path = place.directory / "file"
    make_dirty(path, 4 * HUGE)
    runner.run("free", path=path, offset=keep * HUGE, shrink=1)
    assert (path.stat().st_size, allocated(path)) == (keep * HUGE, keep * HUGE)
    assert is_all(0xFF, path, 0, keep * HUGE)


def test_pages_past_the_end(runner: Runner, place: Place) -> None:
    path = place.directory / "file"
    runner.run("fallocate", path=path, length=2 * HUGE, keep_size=1)
    assert allocated(path) == 2 * HUGE
    runner.run("free", path=path, length=2 * HUGE, shrink=1)
    assert (path.stat().st_size, allocated(path)) == (0, 0)


def test_shrinking_spares_what_was_appended_meanwhile(runner: Runner, place: Place) -> None:
    path = place.directory / "file"
    make_dirty(path, 2 * HUGE)
    plan = runner.prepare("free", path=path, shrink=1)
    os.truncate(path, 4 * HUGE)
    with pytest.raises(TargetError) as caught:
        runner.work(plan)
    assert caught.value.errno == errno.EBUSY
    assert path.stat().st_size == 4 * HUGE


def test_shortened_or_removed_by_others_meanwhile(runner: Runner, place: Place) -> None:
    path = place.directory / "file"
    make_dirty(path, 4 * HUGE)
    plan = runner.prepare("free", path=path, offset=2 * HUGE, shrink=1)
    os.truncate(path, HUGE)
    runner.work(plan)
    assert path.stat().st_size == HUGE
    plan = runner.prepare("free", path=path)
    path.unlink()
    runner.work(plan)


def test_removes_the_file(runner: Runner, place: Place) -> None:
    path = place.directory / "file"
    make_dirty(path, 2 * HUGE)
    before = os.listdir("/proc/self/fd")
    runner.run("free", path=path, unlink=1)
    assert os.listdir(place.directory) == []
    path.touch()
    runner.run("free", path=path, unlink=1)
    assert os.listdir(place.directory) == []
    assert os.listdir("/proc/self/fd") == before


def test_removes_no_other_file(runner: Runner, place: Place) -> None:
    path, moved = place.directory / "file", place.directory / "moved"
    make_dirty(path, 2 * HUGE)
    plan = runner.prepare("free", path=path, unlink=1)
    path.rename(moved)
    path.touch()
    with pytest.raises(TargetError) as caught:
        runner.work(plan)
    assert caught.value.errno == errno.ESTALE
    assert sorted(os.listdir(place.directory)) == ["file", "moved"]
    assert allocated(moved) == 0
    plan = runner.prepare("free", path=moved, unlink=1)
    moved.unlink()
    with pytest.raises(TargetError) as caught:
        runner.work(plan)
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("huge", ["never", "always"])
@pytest.mark.parametrize("rest", [False, True])
@pytest.mark.parametrize("shrink", [0, 1])
def test_what_is_appended_to_the_last_page_meanwhile(
    runner: Runner, area: Path, huge: str, rest: bool, shrink: int
) -> None:
    with filesystems.tmpfs(area / "odd", 64 << 20, f"huge={huge}") as tmpfs:
        path, size = tmpfs / "file", 4 * HUGE + 100
        path.write_bytes(b"x" * size)
        remaining = [Node(HUGE, 4 * HUGE + 4096 - HUGE, NO_NODE)] if rest else None
        plan = runner.prepare("free", remaining, path=path, shrink=shrink, **{"length": size} if rest else {})
        with path.open("ab") as file:
            file.write(b"new")
        if shrink:
            with pytest.raises(TargetError) as caught:
                runner.work(plan)
            assert caught.value.errno == errno.EBUSY
        else:
            runner.work(plan)
        assert path.read_bytes()[HUGE:] == bytes(size - HUGE) + b"new"


@pytest.mark.parametrize("option", ["shrink", "unlink"])
def test_a_cancelled_task_shortens_and_removes_nothing(runner: Runner, place: Place, option: str) -> None:
    path = place.directory / "file"
    make_dirty(path, 2 * HUGE)
    plan = runner.prepare("free", path=path, **{option: 1})
    plan.control.thread_func(0, HUGE)
    plan.finish(not_begun(plan))
    assert path.stat().st_size == 2 * HUGE
    runner.run("free", [Node(HUGE, HUGE, -1)], path=path, **{option: 1})
    assert (path.exists(), option == "shrink") in ((True, True), (False, False))


def test_a_task_that_never_starts(runner: Runner, place: Place) -> None:
    path = place.directory / "file"
    make_dirty(path, 2 * HUGE)
    before = os.listdir("/proc/self/fd")
    runner.prepare("free", path=path, unlink=1).abort()
    assert allocated(path) == 2 * HUGE
    assert os.listdir("/proc/self/fd") == before


def test_refusals(runner: Runner, place: Place, disk: Path) -> None:
    path, link, unit = place.directory / "file", disk / "link", place.unit
    path.touch()
    link.symlink_to(path)
    assert "past the end" in runner.refused("free", path=path, offset=unit).message
    os.truncate(path, 2 * unit)
    assert "page size" in runner.refused("free", path=path, offset=unit // 2).message
    assert "page size" in runner.refused("free", path=path, length=unit // 2).message
    assert "before the end" in runner.refused("free", path=path, length=unit, shrink=1).message
    assert "whole file" in runner.refused("free", path=path, length=unit, unlink=1).message
    assert "whole file" in runner.refused("free", path=path, offset=unit, unlink=1).message
    assert isinstance(runner.refused("free", path=link, unlink=1), InvalidValue)


def test_a_directory_that_is_not_the_callers(runner: Runner, place: Place) -> None:
    directory = place.directory / "roots"
    directory.mkdir(0o755)
    path = directory / "file"
    path.touch()
    path.chmod(0o666)
    os.truncate(path, place.unit)

    def attempt() -> list[object]:
        with pytest.raises(TargetError) as caught:
            runner.prepare("free", path="/roots/file", unlink=1)
        runner.run("free", path="/roots/file")
        return [caught.value.errno, os.path.exists("/proc")]

    assert as_nobody(place.directory, attempt) == [errno.EACCES, False]
    assert path.exists()


def unlink_refusal(runner: Runner, path: Path | str) -> int:
    """The errno of a start that leaves the pages."""
    before = allocated(path)
    with pytest.raises(TargetError) as caught:
        runner.prepare("free", path=path, unlink=1)
    assert allocated(path) == before > 0
    return caught.value.errno


def test_somebody_elses_file_in_a_sticky_directory(runner: Runner, place: Place) -> None:
    path, own = place.directory / "file", place.directory / "own"
    for each, user in ((path, 0), (own, NOBODY)):
        make_dirty(each, place.unit)
        each.chmod(0o666)
        os.chown(each, user, user)

    def attempt() -> int:
        with pytest.raises(TargetError) as caught:
            runner.prepare("free", path="/file", unlink=1)
        runner.run("free", path="/own", unlink=1)
        return caught.value.errno

    place.directory.chmod(0o1777)
    assert as_nobody(place.directory, attempt) == errno.EPERM
    assert is_all(0xFF, path, 0, place.unit)
    assert os.listdir(place.directory) == ["file"]
    os.chown(path, NOBODY, NOBODY)
    os.chown(place.directory, NOBODY, NOBODY)
    runner.run("free", path=path, unlink=1)  # root has CAP_FOWNER


@pytest.mark.parametrize("attribute", ["a", "i"])
def test_a_directory_that_loses_no_names(runner: Runner, tmpfs: Path, attribute: str) -> None:
    directory = tmpfs / "directory"
    directory.mkdir()
    make_dirty(directory / "file", HUGE)
    if subprocess.run(["chattr", f"+{attribute}", directory], capture_output=True, check=False).returncode:
        pytest.skip("tmpfs of this kernel keeps no attributes")
    assert unlink_refusal(runner, directory / "file") == errno.EPERM
    subprocess.run(["chattr", f"-{attribute}", directory], check=True)
    runner.run("free", path=directory / "file", unlink=1)


def test_a_file_that_is_mounted(runner: Runner, place: Place) -> None:
    path, point = place.directory / "file", place.directory / "point"
    make_dirty(path, place.unit)
    point.touch()
    subprocess.run(["mount", "--bind", path, point], check=True)
    try:
        assert unlink_refusal(runner, point) == errno.EBUSY
    finally:
        subprocess.run(["umount", point], check=True)
    runner.run("free", path=path, unlink=1)


def test_a_memfd_that_is_sealed_against_shrinking(runner: Runner) -> None:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.write(fd, b"x" * 4096)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    assert runner.refused("free", path=f"/proc/{os.getpid()}/fd/{fd}", shrink=1).errno == errno.EPERM
    assert os.pread(fd, 4096, 0) == b"x" * 4096
    os.close(fd)


@pytest.mark.parametrize("flags", [0, os.MFD_HUGETLB])
def test_a_memfd_has_no_name_to_remove(runner: Runner, pool_2m: TestPool, flags: int) -> None:
    fd = os.memfd_create("guest", flags)
    path = f"/proc/{os.getpid()}/fd/{fd}"
    os.ftruncate(fd, 4 * HUGE)
    runner.run("fallocate", path=path)
    assert runner.refused("free", path=path, unlink=1).errno == errno.EINVAL
    assert allocated(path) == 4 * HUGE
    os.close(fd)


def test_a_sparse_file_past_16_tib(runner: Runner, place: Place) -> None:
    path, size = place.directory / "file", 40 * TIB
    path.touch()
    os.truncate(path, size)
    unit = unit_of(place)
    for position in (0, 17 * TIB, size - unit):
        subprocess.run(["fallocate", "-o", str(position), "-l", str(unit), str(path)], check=True)
    plan = runner.prepare("free", path=path, offset=TIB, chunk=TIB)
    assert runner.work(plan).units_done == 39 * TIB
    assert (allocated(path), path.stat().st_size) == (unit, size)


def test_the_longest_range(runner: Runner, tmpfs: Path) -> None:
    path, length = tmpfs / "file", SIZE_MAX // HUGE * HUGE
    make_dirty(path, HUGE)
    plan = runner.prepare("free", path=path, length=length)
    assert plan.control.max_chunk_size is not None
    assert length // plan.control.max_chunk_size <= 1 << 18, "it ends within seconds"
    assert runner.work(plan).units_done == length
    assert (allocated(path), path.stat().st_size) == (0, HUGE)


def test_while_somebody_fills_it(runner: Runner, place: Place) -> None:
    """The last writer wins, page by page, and no task fails."""
    path = place.directory / "file"
    make_dirty(path, 16 * HUGE)
    filling = runner.prepare("fallocate", path=path, chunk=HUGE)
    other = threading.Thread(target=runner.work, args=(filling,), kwargs={"max_chunk_size": HUGE})
    other.start()
    for _ in range(5):
        runner.run("free", path=path, chunk=HUGE, force=1)
    other.join()
    assert allocated(path) % place.unit == 0
    assert is_all(0, path, 0, 16 * HUGE)


def test_a_failure_of_the_kernel_is_the_tasks(runner: Runner, tmpfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmpfs / "file"
    path.write_bytes(b"x" * 4096)
    plan = runner.prepare("free", path=path)

    def broken(fd: int, start: int, end: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(syscalls, "punch_hole", broken)
    with pytest.raises(TargetError) as caught:
        plan.control.thread_func(0, 4096)
    assert (caught.value.errno, "free pages" in caught.value.message) == (errno.EIO, True)
    plan.finish(not_begun(plan))
