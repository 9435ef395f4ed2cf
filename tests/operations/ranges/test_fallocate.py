from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import InvalidValue, KtaskfsError, OutOfHugePages, OutOfSpace, TargetError
from ktaskfs.ktask import NO_NODE
from ktaskfs.span import Node
from ktaskfs.units import human_size
from tests.support import filesystems
from tests.support.forked import run_forked
from tests.support.hugepages import smallest_pages
from tests.support.memory_files import HUGE, allocated, dirty, is_all
from tests.support.poll import until
from tests.support.runner import not_begun

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.hugepages import TestPool
    from tests.support.runner import Place, Runner

PIB = 1 << 50


def small_length(place: Place) -> int:
    return min(place.unit * 16, 2 << 30) if place.unit > 4096 else 64 << 20


def test_creates_allocates_and_zeroes(runner: Runner, any_place: Place) -> None:
    path, length = any_place.directory / "new", small_length(any_place)
    runner.run("fallocate", path=path, length=length, mode="0640")
    status = path.stat()
    assert (status.st_size, allocated(path), status.st_mode & 0o777) == (length, length, 0o640)
    assert is_all(0, path, 0, length)


def test_fills_only_what_is_missing(runner: Runner, any_place: Place) -> None:
    path, unit = any_place.directory / "file", max(any_place.unit, 4096)
    path.touch()
    os.truncate(path, 2 * unit)
    dirty(path, unit, 2 * unit)
    runner.run("fallocate", path=path)
    assert path.stat().st_size == 2 * unit
    assert allocated(path) == 2 * unit
    assert is_all(0, path, 0, unit)
    assert is_all(0xFF, path, unit, 2 * unit)


def test_a_range_in_the_middle(runner: Runner, place: Place) -> None:
    path, unit = place.directory / "file", place.unit
    runner.run("fallocate", path=path, offset=unit, length=unit)
    assert path.stat().st_size == 2 * unit
    if unit > 4096:  # a huge page of tmpfs may begin before the range
        assert allocated(path) == unit


def test_two_threads_and_a_resumed_task(runner: Runner, place: Place) -> None:
    path, length = place.directory / "file", small_length(place)
    half = length // 2
    plan = runner.prepare("fallocate", [Node(half, length - half, -1)], path=path, length=length)
    outcome = runner.work(plan)
    assert outcome.units_done == half
    if place.unit > 4096:
        assert allocated(path) == half
    runner.run("fallocate", [Node(0, half, -1)], path=path, length=length, chunk=place.unit)
    assert allocated(path) == length


def test_abort_leaves_nothing(runner: Runner, any_place: Place) -> None:
    path, unit = any_place.directory / "file", any_place.unit
    before = os.statvfs(any_place.directory).f_bfree
    runner.prepare("fallocate", path=path, length=unit).abort()
    assert not path.exists()
    runner.run("fallocate", path=path, length=unit)
    runner.prepare("fallocate", path=path, length=2 * unit).abort()
    assert path.stat().st_size == unit
    plan = runner.prepare("fallocate", path=path, length=2 * unit)
    os.truncate(path, 4 * unit)  # by somebody else, who wants to keep that
    plan.abort()
    assert path.stat().st_size == 4 * unit
    path.unlink()
    assert os.statvfs(any_place.directory).f_bfree == before


def test_keep_size(runner: Runner, place: Place) -> None:
    path, unit = place.directory / "file", place.unit
    runner.run("fallocate", path=path, length=2 * unit, keep_size=1)
    assert path.stat().st_size == 0
    assert allocated(path) >= 2 * unit
    os.truncate(path, 0)
    runner.run("fallocate", path=path, length=unit)
    runner.run("fallocate", path=path, length=unit, keep_size=1)
    assert path.stat().st_size == unit


@smallest_pages
def test_keep_size_looks_at_the_pool_too(runner: Runner, pool: TestPool, hugetlbfs: Path) -> None:
    path = hugetlbfs / "file"
    error = runner.refused("fallocate", path=path, length=(pool.available + 1) * pool.page_size, keep_size=1)
    assert isinstance(error, OutOfHugePages)
    assert not path.exists()


def test_more_than_the_pool_is_refused_before_a_page_is_touched(
    runner: Runner, pool: TestPool, hugetlbfs: Path
) -> None:
    path, free = hugetlbfs / "file", pool.available
    for length in ((free + 1) * pool.page_size, PIB, (1 << 62)):
        error = runner.refused("fallocate", path=path, length=length)
        assert isinstance(error, OutOfHugePages)
        assert error.errno == errno.ENOMEM
        assert f"{length // pool.page_size} huge pages" in error.message
        assert f"{pool.free} free" in error.message
        assert not path.exists()
        assert pool.available == free
    runner.run("fallocate", path=path, length=pool.page_size)
    assert runner.refused("fallocate", path=path, length=(free + 1) * pool.page_size).errno == errno.ENOMEM
    assert path.stat().st_size == pool.page_size


@smallest_pages
def test_the_reservation_is_whole_before_the_start(runner: Runner, pool: TestPool, hugetlbfs: Path) -> None:
    free = pool.available
    plan = runner.prepare("fallocate", path=hugetlbfs / "file", length=2 * pool.page_size)
    assert (pool.available, pool.reserved >= 2) == (free - 2, True)
    assert allocated(hugetlbfs / "file") == 0
    error = runner.refused("fallocate", path=hugetlbfs / "other", length=(free - 1) * pool.page_size)
    assert error.errno == errno.ENOMEM
    runner.work(plan)
    assert allocated(hugetlbfs / "file") == 2 * pool.page_size


def test_the_mounts_own_limit_is_space(runner: Runner, pool_2m: TestPool, area: Path) -> None:
    with filesystems.hugetlbfs(area / "small", HUGE, f"size={2 * HUGE}") as directory:
        error = runner.refused("fallocate", path=directory / "file", length=4 * HUGE)
        assert isinstance(error, OutOfSpace)
        assert os.listdir(directory) == []
        runner.run("fallocate", path=directory / "file", length=2 * HUGE)


@smallest_pages
def test_too_few_addresses_are_not_too_few_pages(runner: Runner, pool: TestPool, hugetlbfs: Path) -> None:
    def attempt() -> str:
        resource.setrlimit(resource.RLIMIT_AS, (64 << 20, resource.RLIM_INFINITY))
        error = runner.refused("fallocate", path=hugetlbfs / "file", length=pool.available * pool.page_size)
        return f"{error.errname} {error.message}"

    found = run_forked(attempt)
    assert found.startswith("ENOMEM")
    assert "address space" in found
    assert os.listdir(hugetlbfs) == []


def test_unaligned_ranges(runner: Runner, any_place: Place) -> None:
    path, unit = any_place.directory / "file", any_place.unit
    for offset, length in ((0, unit + 1), (1, unit), (unit // 2, unit)):
        error = runner.refused("fallocate", path=path, offset=offset, length=length)
        assert isinstance(error, InvalidValue)
        assert {4096: "4K", HUGE: "2M", 1 << 30: "1G"}.get(unit, "") in error.message
        assert not path.exists()


ODD = 300003
ODD_PAGES = 74 * 4096


@pytest.fixture
def odd(area: Path) -> Iterator[Path]:
    """A file of no whole pages, with data in the first and in the last."""
    with filesystems.tmpfs(area / "small", 1 << 20, "huge=never") as directory:
        path = directory / "file"
        path.write_bytes(b"x")
        os.truncate(path, ODD - 1)
        with path.open("ab") as file:
            file.write(b"x")
        yield path


@pytest.mark.parametrize("undo", [0, 1])
def test_to_the_end_of_a_file_of_no_whole_pages(runner: Runner, odd: Path, undo: int) -> None:
    """With the rest of the last page, as ``free`` does; the file keeps its size."""
    before = odd.read_bytes()
    plan = runner.prepare("fallocate", path=odd, undo=undo)
    runner.work(plan)
    assert allocated(odd) == sum(node.size for node in plan.nodes) == ODD_PAGES
    assert odd.read_bytes() == before


def test_a_rest_to_the_end_keeps_the_size_too(runner: Runner, odd: Path) -> None:
    """Its length is known by then, to the byte."""
    runner.run("fallocate", [Node(4096, ODD_PAGES - 4096, NO_NODE)], path=odd, length=ODD)
    assert (odd.stat().st_size, allocated(odd)) == (ODD, ODD_PAGES)
    runner.run("fallocate", path=odd, length=ODD_PAGES)
    assert odd.stat().st_size == ODD_PAGES


def test_undo_spares_what_others_have_appended_to_the_last_page(runner: Runner, odd: Path) -> None:
    plan = runner.prepare("fallocate", path=odd, undo=1)
    assert plan.control.undo_func is not None
    plan.control.thread_func(0, ODD_PAGES)
    with odd.open("ab") as file:
        file.write(b"precious")
    plan.control.undo_func(0, ODD_PAGES)
    plan.finish(not_begun(plan))
    assert (allocated(odd), odd.read_bytes()[-9:]) == (2 * 4096, b"xprecious")


def test_an_empty_file_needs_a_length(runner: Runner, place: Place) -> None:
    assert "length is missing" in runner.refused("fallocate", path=place.directory / "file").message
    assert os.listdir(place.directory) == []


def test_a_full_tmpfs_is_refused_before_a_page_is_touched(runner: Runner, tmpfs: Path) -> None:
    path = tmpfs / "file"
    free = os.statvfs(tmpfs).f_bfree
    for length in (257 << 20, PIB):
        error = runner.refused("fallocate", path=path, length=length)
        assert isinstance(error, OutOfSpace)
        size = human_size(length)
        assert error.message == f"{path}: {size} are missing, but its filesystem has 256.0MiB left"
        assert not path.exists()
    assert os.statvfs(tmpfs).f_bfree == free
    runner.run("fallocate", path=path, length=128 << 20)
    runner.run("fallocate", path=path, length=256 << 20)  # existing pages need not be allocated again
    assert allocated(path) == 256 << 20


def test_pages_that_were_never_written_count_as_there(runner: Runner, tmpfs: Path) -> None:
    subprocess.run(["fallocate", "-l", "200M", tmpfs / "file"], check=True)
    runner.run("fallocate", path=tmpfs / "file", length=256 << 20)
    assert allocated(tmpfs / "file") == 256 << 20


def test_more_tmpfs_than_memory_is_refused(runner: Runner, area: Path) -> None:
    with filesystems.tmpfs(area / "endless", 0) as directory:
        error = runner.refused("fallocate", path=directory / "file", length=PIB)
        assert error.errno == errno.ENOMEM
        assert "memory" in error.message
        assert os.listdir(directory) == []


@pytest.mark.parametrize("keep_size", [0, 1])
def test_the_callers_file_size_limit(runner: Runner, place: Place, keep_size: int) -> None:
    def attempt() -> list[object]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (place.unit, resource.RLIM_INFINITY))
        found: list[object] = []
        for length in (2 * place.unit, place.unit):
            try:
                runner.run("fallocate", path=place.directory / "file", length=length, keep_size=keep_size)
                found.append(0)
            except KtaskfsError as error:
                found.append(error.errno)
        return found

    assert run_forked(attempt) == [errno.EFBIG, 0]


@pytest.mark.parametrize("flags", [0, os.MFD_HUGETLB])
def test_a_memfd_that_is_sealed_against_growing(runner: Runner, pool_2m: TestPool, flags: int) -> None:
    fd = os.memfd_create("sealed", flags | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    error = runner.refused("fallocate", path=f"/proc/{os.getpid()}/fd/{fd}", length=HUGE)
    assert error.errno == errno.EPERM
    assert os.fstat(fd).st_size == 0
    os.close(fd)


@pytest.mark.parametrize("flags", [0, os.MFD_HUGETLB])
def test_a_memfd_grows_through_proc(runner: Runner, pool_2m: TestPool, flags: int) -> None:
    fd = os.memfd_create("guest", flags)
    path = f"/proc/{os.getpid()}/fd/{fd}"
    runner.run("fallocate", path=path, length=16 * HUGE)
    assert (os.fstat(fd).st_size, allocated(path)) == (16 * HUGE, 16 * HUGE)
    assert is_all(0, path, 0, 16 * HUGE)
    os.close(fd)


@smallest_pages
def test_unlinked_meanwhile(runner: Runner, pool: TestPool, hugetlbfs: Path) -> None:
    free = pool.available
    plan = runner.prepare("fallocate", path=hugetlbfs / "file", length=2 * pool.page_size)
    (hugetlbfs / "file").unlink()
    runner.work(plan)
    until(lambda: pool.available == free, "the pages come back with the last descriptor")


def test_a_tmpfs_that_others_fill_meanwhile(runner: Runner, tmpfs: Path) -> None:
    plan = runner.prepare("fallocate", path=tmpfs / "file", length=128 << 20)
    subprocess.run(["fallocate", "-l", "200M", tmpfs / "other"], check=True)
    failed = runner.failure(plan)
    assert isinstance(failed, TargetError)
    assert failed.errno == errno.ENOSPC


@smallest_pages
def test_a_pool_that_others_empty_meanwhile(runner: Runner, pool: TestPool, hugetlbfs: Path) -> None:
    """Only pages past the end of the file are not reserved."""
    plan = runner.prepare("fallocate", path=hugetlbfs / "file", length=2 * pool.page_size, keep_size=1)
    runner.run("fallocate", path=hugetlbfs / "other", length=pool.available * pool.page_size)
    failed = runner.failure(plan)
    assert isinstance(failed, TargetError)
    assert (failed.errno, "pool" in failed.message) == (errno.ENOMEM, True)


def test_nodes(runner: Runner, place: Place) -> None:
    path, length = place.directory / "file", small_length(place)

    def on_node_zero() -> int:  # the memory policy stays with the threads of this child
        runner.run("fallocate", path=path, length=length, nodes="0")
        return allocated(path)

    assert run_forked(on_node_zero) == length


def test_far_out_in_a_sparse_file(runner: Runner, pool: TestPool, hugetlbfs: Path) -> None:
    path, start = hugetlbfs / "file", 40 << 40
    runner.run("fallocate", path=path, offset=start, length=pool.page_size)
    assert (path.stat().st_size, allocated(path)) == (start + pool.page_size, pool.page_size)
    assert is_all(0, path, start, start + pool.page_size)
