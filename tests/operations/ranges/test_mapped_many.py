"""Several files that a process maps, in one task (``pid=``)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

import ktaskfs.result
from ktaskfs.errors import Finding, InvalidValue
from ktaskfs.host.hugepages import read_pools
from tests.support.holding import used
from tests.support.memory_files import HUGE, allocated, is_all, write_bytes
from tests.support.programs import ended, opened, running

if TYPE_CHECKING:
    from tests.support.hugepages import TestPool
    from tests.support.runner import Runner

SEVERAL = """
kept = []
for name, pages in (("one", 2), ("two", 3), ("empty", 0)):
    fd = os.memfd_create(name, os.MFD_HUGETLB | 21 << 26)
    os.ftruncate(fd, pages << 21)
    kept += [mmap.mmap(fd, pages << 21) for _ in range(2) if pages]
small = mmap.mmap(-1, 1 << 20)
small[:] = b"s" * len(small)
"""


def planned(runner: Runner, **texts: object) -> dict[str, str]:
    """The plan of fallocate."""
    text = runner.result(runner.prepare("fallocate", **texts, plan=1))
    return dict(line.split() for line in text.splitlines())


def counts(result: str) -> dict[str, str]:
    """The lines of two words."""
    return dict(words for line in result.splitlines() if len(words := line.split()) == 2)


def test_all_files_in_huge_pages_are_one_task(
    runner: Runner, pool_2m: TestPool, root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task does not touch the shared memory in small pages."""
    process = running(SEVERAL)
    try:
        pid = process.pid
        memory = [opened(pid, "/memfd:one"), opened(pid, "/memfd:two")]
        assert planned(runner, pid=pid) == {
            "operation": "fallocate",
            "total": str(5 * HUGE),
            "units": "bytes",
            "files": "2",
            "allocates": str(5 * HUGE),
        }
        result = runner.result(runner.prepare("fallocate", pid=pid, mapping="all"))
        assert counts(result) == {"files": "2", "gone": "0", "page_size": str(HUGE)}
        assert [allocated(path) for path in memory] == [2 * HUGE, 3 * HUGE]
        assert planned(runner, pid=pid)["allocates"] == "0"
        runner.run("fill", pid=pid, pattern="a7")
        write_bytes(memory[1], b"\xa7" * 5 + b"x" + b"\xa7" * (HUGE - 6), HUGE)
        with pytest.raises(Finding) as caught:
            runner.result(runner.prepare("verify", pid=pid, pattern="a7"))
        assert caught.value.position in (HUGE + 5, 3 * HUGE + 5)
        assert counts(caught.value.result)["compared"] == str(5 * HUGE)
        offset, differing, *_, path = caught.value.result.splitlines()[-1].split()
        assert (offset, differing) == (str(HUGE + 5), "1")
        assert os.path.samefile(path, memory[1])
        sums = runner.result(runner.prepare("checksum", pid=pid, chunk="3M"))
        alone = [runner.result(runner.prepare("checksum", path=path)).split() for path in memory]
        assert counts(sums)["left_out"] == "0"
        assert sorted(line.split()[:2] for line in sums.splitlines()[4:]) == sorted(alone)
        monkeypatch.setattr(ktaskfs.result, "RESULT_MAX", 150)
        sums = runner.result(runner.prepare("checksum", pid=pid))
        assert sums.splitlines()[3:-1] == ["left_out 1"], "digests that the result has no room for are counted"
        runner.run("clear", pid=pid)
        assert all(is_all(0, path, 0, 2 * HUGE) for path in memory)
        runner.run("free", pid=pid)
        assert [allocated(path) for path in memory] == [0, 0]
    finally:
        ended(process)


def test_what_several_files_are_refused_for(runner: Runner, pool_2m: TestPool, root: None) -> None:
    process = running(SEVERAL)
    try:
        for operation, texts, words in (
            ("fallocate", {"undo": 1}, "undo=1 works on one file, but the process shares several"),
            ("fallocate", {"keep_size": 1}, "keep_size=1 works on one file, but the process shares several"),
            ("checksum", {"expect": "0" * 8}, "expect is the digest of one file, but the process shares several"),
            ("clear", {"offset": HUGE}, "stands for many files: leave out offset and length"),
        ):
            error = runner.refused(operation, pid=process.pid, **texts)
            assert isinstance(error, InvalidValue)
            assert words in error.message
        with used(opened(process.pid, "/memfd:two"), "maps") as other:
            error = runner.refused("free", pid=process.pid)
            assert error.errno == errno.EBUSY
            assert f"({other.pid})" in error.message
    finally:
        ended(process)


@pytest.mark.parametrize("operation", ["fallocate", "fill", "verify", "checksum", "free"])
def test_files_that_a_process_has_no_more_are_counted(
    runner: Runner, pool_2m: TestPool, root: None, operation: str
) -> None:
    process = running(SEVERAL)
    plan = runner.prepare(operation, pid=process.pid)
    ended(process)
    result = runner.result(plan)
    # fallocate maps the files at its start.
    assert counts(result)["gone"] == ("0" if operation == "fallocate" else "2")


@pytest.mark.parametrize("operation", ["verify", "checksum"])
@pytest.mark.parametrize("pages", [0, 1])
def test_a_file_that_is_cut_meanwhile_is_an_error(
    runner: Runner, pool_2m: TestPool, root: None, operation: str, pages: int
) -> None:
    """A digest of the rest would look like that of the whole file."""
    process = running(SEVERAL)
    try:
        runner.run("fallocate", pid=process.pid)
        more = {"pattern": "00"} if operation == "verify" else {}
        plan = runner.prepare(operation, pid=process.pid, **more)
        os.truncate(opened(process.pid, "/memfd:two"), pages * HUGE)
        assert runner.failure(plan).errno == errno.ENXIO
    finally:
        ended(process)


def test_a_refused_start_reserves_nothing(runner: Runner, pool_2m: TestPool, root: None) -> None:
    """The process itself has reserved nothing: the pages of one file would fit."""
    (pool,) = [each for each in read_pools(runner.kernel) if each.size == HUGE]
    before = pool_2m.reserved
    process = running(
        f"""
kept = []
for name, pages in (("large", {pool.obtainable + pool.reserved}), ("small", 1)):
    fd = os.memfd_create(name, os.MFD_HUGETLB | 21 << 26)
    os.ftruncate(fd, pages << 21)
    kept.append(mmap.mmap(fd, 0, flags=mmap.MAP_SHARED | 0x4000))  # MAP_NORESERVE
"""
    )
    try:
        assert runner.refused("fallocate", pid=process.pid).errno == errno.ENOMEM
        assert pool_2m.reserved == before
    finally:
        ended(process)


def test_a_plan_where_all_pages_are_reserved_for_the_process(runner: Runner, pool_2m: TestPool, root: None) -> None:
    """A database reserves its pages at its start."""
    (pool,) = [each for each in read_pools(runner.kernel) if each.size == HUGE]
    free = pool.free - pool.reserved
    for files in (1, 2):
        process = running(
            f"""
for number in range({files}):
    fd = os.memfd_create("one", os.MFD_HUGETLB | 21 << 26)
    os.ftruncate(fd, ({free} - number) // {files} << 21)
    globals()[f"memory{{number}}"] = mmap.mmap(fd, 0)
"""
        )
        try:
            total = sum((free - number) // files for number in range(files))
            assert planned(runner, pid=process.pid)["allocates"] == str(total * HUGE)
            runner.run("fallocate", pid=process.pid)
            assert planned(runner, pid=process.pid)["allocates"] == "0"
        finally:
            ended(process)
