"""``fallocate undo=1``: the pages that it frees, and those that it leaves to others."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
from typing import TYPE_CHECKING

from ktaskfs import ktask
from ktaskfs.errors import NotSupported
from ktaskfs.host import syscalls
from tests.support import filesystems
from tests.support.hugepages import smallest_pages
from tests.support.memory_files import HUGE, allocated, dirty, is_all, write_bytes
from tests.support.runner import not_begun

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.support.hugepages import TestPool
    from tests.support.runner import Place, Runner


def cancelling(runner: Runner, after: int, **texts: object) -> None:
    """Run a task that is cancelled from its own chunk number ``after``."""
    plan = runner.prepare("fallocate", **texts)
    job: ktask.Job
    done = []

    def chunk(start: int, end: int) -> None:
        plan.control.thread_func(start, end)
        done.append(start)
        if len(done) == after:
            job.cancel()

    job = ktask.Job(
        plan.nodes,
        dataclasses.replace(plan.control, thread_func=chunk, max_threads=1, max_chunk_size=plan.control.min_chunk_size),
    )
    outcome = job.run()
    assert outcome.cancelled
    plan.finish(outcome)


def test_undo_frees_only_what_it_allocated(runner: Runner, any_place: Place) -> None:
    unit = any_place.unit if any_place.unit > 4096 else HUGE
    path = any_place.directory / "file"
    path.touch()
    os.truncate(path, 2 * unit)
    dirty(path, unit, 2 * unit)
    before = allocated(path)
    cancelling(runner, 1, path=path, undo=1, chunk=unit)
    assert allocated(path) == before
    assert is_all(0xFF, path, unit, 2 * unit)
    assert path.stat().st_size == 2 * unit


def test_undo_frees_whole_huge_pages_of_tmpfs(runner: Runner, area: Path) -> None:
    """Two chunks in one would take its other half for the work of somebody else."""
    with filesystems.tmpfs(area / "huge", 16 * HUGE, "huge=always") as directory:
        path = directory / "file"
        path.touch()
        os.truncate(path, 4 * HUGE)
        cancelling(runner, 2, path=path, undo=1, chunk=HUGE // 2)
        assert allocated(path) == 0


def test_undo_keeps_what_others_have_written_meanwhile(runner: Runner, place: Place) -> None:
    unit = place.unit if place.unit > 4096 else HUGE
    path = place.directory / "file"
    plan = runner.prepare("fallocate", path=path, length=4 * unit, undo=1, chunk=unit)

    def chunk(start: int, end: int) -> None:
        plan.control.thread_func(start, end)
        if start == 2 * unit:
            write_bytes(path, b"COMMIT".ljust(place.unit, b"\0"), unit)
            job.cancel()

    control = dataclasses.replace(plan.control, thread_func=chunk, max_threads=1, max_chunk_size=unit)
    job = ktask.Job(plan.nodes, control)
    outcome = job.run()
    result = plan.finish(outcome)
    assert outcome.cancelled
    assert result == f"kept {place.unit}\n"
    last = 0 if place.unit > 4096 else HUGE  # at most, of what made the file longer
    assert (path.stat().st_size, allocated(path) <= place.unit + last) == (4 * unit, True)
    assert is_all(0, path, 0, unit)
    assert path.read_bytes()[unit : unit + 7] == b"COMMIT\0"


def test_undo_takes_back_the_new_size_and_the_new_file(runner: Runner, place: Place) -> None:
    unit = place.unit if place.unit > 4096 else HUGE
    path = place.directory / "file"
    before = os.statvfs(place.directory).f_bfree
    cancelling(runner, 1, path=path, length=2 * unit, undo=1, chunk=unit)
    assert not path.exists()
    assert os.statvfs(place.directory).f_bfree == before
    runner.run("fallocate", path=path, length=unit)
    cancelling(runner, 1, path=path, length=2 * unit, undo=1, chunk=unit)
    assert (path.stat().st_size, allocated(path)) == (unit, unit)


def test_undo_that_is_not_needed_changes_nothing(runner: Runner, place: Place) -> None:
    path, length = place.directory / "file", 2 * max(place.unit, HUGE)
    runner.run("fallocate", path=path, length=length, undo=1)
    assert (path.stat().st_size, allocated(path)) == (length, length)


def test_undo_takes_back_the_part_of_the_chunk_that_failed(runner: Runner, tmpfs: Path) -> None:
    path = tmpfs / "file"
    free = os.statvfs(tmpfs).f_bfree
    plan = runner.prepare("fallocate", path=path, length=128 << 20, undo=1)
    subprocess.run(["fallocate", "-l", "200M", tmpfs / "other"], check=True)
    assert runner.failure(plan).errno == errno.ENOSPC
    assert not path.exists()
    (tmpfs / "other").unlink()
    assert os.statvfs(tmpfs).f_bfree == free


@smallest_pages
def test_what_stays_reserved_after_an_undo(runner: Runner, pool: TestPool, hugetlbfs: Path) -> None:
    """Of a file that others have open: neither the pages that undo freed, nor those past the old end."""
    path, page, before = hugetlbfs / "file", pool.page_size, pool.reserved
    path.touch()
    os.truncate(path, 6 * page)
    plan = runner.prepare("fallocate", path=path, length=8 * page, undo=1)
    with path.open("rb"):
        plan.control.thread_func(0, 3 * page)
        assert plan.control.undo_func is not None
        plan.control.undo_func(0, 4 * page)
        assert plan.finish(not_begun(plan)) == f"reserved {3 * page}\n"
        assert (path.stat().st_size, allocated(path), pool.reserved - before) == (6 * page, 0, 3)


def test_undo_is_refused_where_it_could_not_be_exact(runner: Runner, tmpfs: Path) -> None:
    subprocess.run(["fallocate", "-l", "4M", tmpfs / "file"], check=True)
    error = runner.refused("fallocate", path=tmpfs / "file", length="8M", undo=1)
    assert isinstance(error, NotSupported)
    assert (tmpfs / "file").stat().st_size == 4 << 20


def test_undo_holds_the_lock_of_the_inode_for_moments(
    runner: Runner, area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many bytes at a time as ``free`` does."""
    length, original, freed = 320 << 20, syscalls.punch_hole, []

    def watched(fd: int, start: int, end: int) -> None:
        freed.append(end - start)
        original(fd, start, end)

    with filesystems.tmpfs(area / "tmpfs", 2 * length, "huge=always") as tmpfs:
        plan = runner.prepare("fallocate", path=tmpfs / "file", length=length, undo=1)
        plan.control.thread_func(0, length)
        monkeypatch.setattr(syscalls, "punch_hole", watched)
        assert plan.control.undo_func is not None
        plan.control.undo_func(0, length)
        assert allocated(tmpfs / "file") == 0
        plan.finish(not_begun(plan))
    assert (max(freed), sum(freed)) == (256 << 20, length)
