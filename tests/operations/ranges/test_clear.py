from __future__ import annotations

import errno
import mmap
import os
import subprocess
import threading
from typing import TYPE_CHECKING

from ktaskfs.errors import KtaskfsError, NotSupported, TargetError
from ktaskfs.host import syscalls, userfaultfd
from ktaskfs.ktask import TaskError
from ktaskfs.span import Node
from tests.support.memory_files import HUGE, TIB, allocated, is_all, make_dirty, punch
from tests.support.runner import not_begun

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.support.hugepages import TestPool
    from tests.support.runner import Place, Runner


def fill_length(place: Place) -> int:
    return 2 * place.unit if place.unit > HUGE else 64 << 20


def test_zeroes_everything_in_place(runner: Runner, any_place: Place) -> None:
    path, length = any_place.directory / "file", fill_length(any_place)
    make_dirty(path, length)
    before = allocated(path)
    runner.run("clear", path=path)
    assert is_all(0, path, 0, length)
    assert (allocated(path), path.stat().st_size) == (before, length)


def test_zeroes_nothing_else(runner: Runner, any_place: Place) -> None:
    path, length = any_place.directory / "file", fill_length(any_place)
    make_dirty(path, length)
    start, end = length // 2 - 12345, length // 2 + HUGE + 777
    runner.run("clear", path=path, offset=start, length=end - start, chunk=HUGE)
    assert is_all(0xFF, path, 0, start)
    assert is_all(0, path, start, end)
    assert is_all(0xFF, path, end, length)


def test_several_threads_share_one_page(runner: Runner, pool: TestPool, hugetlbfs: Path) -> None:
    expected = 1 if pool.page_size == HUGE else 16
    make_dirty(hugetlbfs / "file", pool.page_size)
    plan = runner.prepare("clear", path=hugetlbfs / "file")
    outcome = runner.work(plan)
    assert outcome.chunks >= expected
    assert is_all(0, hugetlbfs / "file", 0, pool.page_size)


def test_a_hole_stays_a_hole(runner: Runner, any_place: Place) -> None:
    unit = any_place.unit if any_place.unit > 4096 else HUGE
    path, pages = any_place.directory / "file", 2 if any_place.unit > HUGE else 16
    make_dirty(path, pages * unit)
    holes = [0] if pages == 2 else [0, 3, 4, 7, 15]
    for page in holes:
        punch(path, page * unit, unit)
    before = allocated(path)
    runner.run("clear", path=path)
    assert allocated(path) == before == (pages - len(holes)) * unit
    assert is_all(0, path, 0, pages * unit)


def test_single_holes_of_tmpfs(runner: Runner, tmpfs: Path) -> None:
    path = tmpfs / "file"
    make_dirty(path, 8 << 20)
    for position in range(0, 8 << 20, 32 << 10):
        punch(path, position, 4096)
    os.truncate(path, (8 << 20) - 100)
    before = allocated(path)
    runner.run("clear", path=path)
    assert allocated(path) == before
    assert is_all(0, path, 0, (8 << 20) - 100)


def test_punched_between_looking_and_clearing(runner: Runner, place: Place) -> None:
    unit = place.unit if place.unit > 4096 else HUGE
    path = place.directory / "file"
    make_dirty(path, 2 * unit)
    plan = runner.prepare("clear", path=path)
    punch(path, unit, unit)
    runner.work(plan)
    assert allocated(path) == unit
    assert is_all(0, path, 0, 2 * unit)


def test_punched_while_clearing(runner: Runner, place: Place) -> None:
    unit = place.unit if place.unit > 4096 else HUGE
    path = place.directory / "file"
    pages = 2 if place.unit > HUGE else 16
    make_dirty(path, pages * unit)
    stop = threading.Event()

    def punching() -> None:
        with path.open("rb+") as file:
            while not stop.is_set():
                mode = syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE
                for page in range(0, pages, 2):
                    syscalls.fallocate(file.fileno(), mode, page * unit, unit)

    other = threading.Thread(target=punching)
    other.start()
    try:
        for _ in range(5):
            runner.run("clear", path=path, chunk=HUGE, force=1)
    finally:
        stop.set()
        other.join()
    assert allocated(path) == pages // 2 * unit
    assert is_all(0, path, 0, pages * unit)


def ending(runner: Runner, path: Path, length: int) -> int:
    """Clear; the errno it ended with, at the write or later."""
    try:
        runner.run("clear", path=path, length=length, chunk=HUGE, force=1)  # truncating looks like writing
    except TaskError as failed:
        return failed.error.errno if isinstance(failed.error, TargetError) else -1
    except KtaskfsError as error:
        return error.errno
    return 0


def test_truncated_while_clearing(runner: Runner, place: Place) -> None:
    unit = place.unit if place.unit > 4096 else HUGE
    path = place.directory / "file"
    pages = 2 if place.unit > HUGE else 16
    ended = threading.Event()

    def truncating() -> None:
        while not ended.is_set():
            os.truncate(path, unit)
            os.truncate(path, pages * unit)

    make_dirty(path, pages * unit)
    other = threading.Thread(target=truncating)
    other.start()
    try:
        for _ in range(20):
            found = ending(runner, path, unit * pages)
            assert found in (0, errno.EINVAL, errno.ENXIO)
    finally:
        ended.set()
        other.join()
    assert allocated(path) <= unit


def test_what_an_earlier_run_left(runner: Runner, place: Place) -> None:
    path, length = place.directory / "file", fill_length(place)
    make_dirty(path, length)
    half = length // 2
    runner.run("clear", [Node(half, length - half, -1)], path=path)
    assert is_all(0xFF, path, 0, half)
    assert is_all(0, path, half, length)


def test_a_sparse_file_past_16_tib(runner: Runner, pool: TestPool, hugetlbfs: Path) -> None:
    path, size = hugetlbfs / "file", 40 * TIB
    path.touch()
    os.truncate(path, size)
    runner.run("clear", path=path, offset=16 * TIB, length=TIB)  # no page exists
    last = size - pool.page_size
    subprocess.run(["fallocate", "-o", str(last), "-l", str(pool.page_size), str(path)], check=True)
    with path.open("rb+") as file, mmap.mmap(file.fileno(), pool.page_size, offset=last) as mapped:
        mapped[:] = b"\xff" * pool.page_size
    for offset in (last - 64 * pool.page_size, 0):  # the second is too long to be mapped whole
        plan = runner.prepare("clear", path=path, offset=offset)
        plan.control.thread_func(last - 2 * pool.page_size, size - 5)
        plan.finish(not_begun(plan))
        assert is_all(0, path, last, size - 5)
        assert is_all(0xFF, path, size - 5, size)
    assert allocated(path) == pool.page_size


def test_without_userfaultfd(runner: Runner, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(features: int) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(userfaultfd, "create", forbidden)
    unit = place.unit if place.unit > 4096 else HUGE
    path = place.directory / "file"
    make_dirty(path, 2 * unit)
    runner.run("clear", path=path)
    assert is_all(0, path, 0, 2 * unit)
    punch(path, 0, unit)
    error = runner.refused("clear", path=path)
    assert isinstance(error, NotSupported)
    assert "userfaultfd" in error.message
