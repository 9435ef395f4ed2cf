"""Limits of the caller's control groups that are lowered while a task is at work."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host.mapped_range import MappedRange
from ktaskfs.host.mapping import HoleGuard
from ktaskfs.host.presence import missing_pages
from ktaskfs.units import human_size
from tests.attacks.callers import wait_for_worker
from tests.mount.test_control_groups import MIB, PAGE, huge, start_in
from tests.support.cgroups import group
from tests.support.hugepages import TestPool
from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount

__all__ = ["huge"]

pytestmark = pytest.mark.usefixtures("root", "patient")

SLOW = "chunk=2M rate_max=1"
"""One chunk for each thread until the rate is raised."""


@pytest.fixture
def mount(mount_maker: MountMaker) -> Mount:
    """With a helper thread for each task that wants one."""
    return mount_maker("cpu_percent=100")


@pytest.fixture
def where() -> Iterator[Path]:
    """A group of version 2, where huge pages are limited."""
    with group("") as path:
        yield path


def at_work(mount: Mount, where: Path, spec: str) -> int:
    """The pid of the worker of task ``t``, which has done something."""
    assert start_in(mount, where, f"{spec} name=t").status == 0
    pid = wait_for_worker(mount, "t")
    until(lambda: not mount.read("tasks/t/progress").startswith("0 "), "a chunk is done")
    return pid


def end(mount: Mount) -> str:
    """How it ends at full speed."""
    mount.write("tasks/t/rate_max", "max")
    assert mount.cat("tasks/t/wait").status == 0
    return mount.read("tasks/t/state").strip()


def missing_before_the_last(path: Path) -> int:
    """Bytes of the missing pages before the last existing one of a file on hugetlbfs."""
    size = path.stat().st_size
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("rb+"))
        guard = HoleGuard()
        stack.callback(guard.close)
        pages = MappedRange(file.fileno(), 0, size, PAGE, guard)
        stack.callback(pages.close)
        return sum(run.size for run in missing_pages(pages, 0, size, PAGE) if run.end < size)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("existed", [False, True])
def test_huge_pages(mount: Mount, where: Path, huge: Path, threads: int, existed: bool) -> None:
    """The task names the limit, and no reservation remains for missing pages.

    But pages before the last one that the other thread has allocated cannot be released; then the result has their
    number.
    """
    pool = TestPool(PAGE, 0)
    reserved, free = pool.reserved, pool.free
    if existed:
        with (huge / "f").open("w") as file:
            os.truncate(file.fileno(), 64 * MIB)
    at_work(mount, where, f"fallocate path={huge}/f length=64M max_threads={threads} {SLOW}")
    (where / "hugetlb.2MB.max").write_text(str(4 * PAGE))
    assert end(mount) == "failed"
    error = mount.read("tasks/t/error")
    assert error.startswith("ENOMEM at ")
    assert f"v2:/{where.name} has 0B left: hugetlb.2MB.max is {human_size(4 * PAGE)}" in error
    result = mount.read("tasks/t/result")
    stays = int(result.removeprefix("reserved ")) if result else 0
    assert pool.reserved == reserved + stays // PAGE
    assert stays == missing_before_the_last(huge / "f")
    assert threads == 2 or stays == 0
    there = (huge / "f").stat()
    assert (there.st_size, there.st_blocks * 512) == (64 * MIB, (free - pool.free) * PAGE)
    (where / "hugetlb.2MB.max").write_text("max")
    mount.write("tasks/t/control", "resume")
    assert mount.cat("tasks/t/wait").status == 0
    assert mount.read("tasks/t/state") == "done\n"
    (huge / "f").unlink()


@pytest.mark.parametrize("file", ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"])
def test_huge_pages_of_a_directory(mount: Mount, where: Path, huge: Path, disk: Path, file: str) -> None:
    """As for one file: the task ends at the limit, which it names, and does not skip one file after another."""
    (disk / "source").mkdir()
    for number in range(16):
        (disk / f"source/{number}").write_bytes(b"x" * (2 * PAGE))
    pool = TestPool(PAGE, 0)
    reserved = pool.reserved
    at_work(mount, where, f"copy source={disk}/source path={huge}/copy {SLOW}")
    (where / file).write_text(str(5 * PAGE))  # each of two threads may have copied one file
    assert end(mount) == "failed"
    error = mount.read("tasks/t/error")
    assert error.startswith("ENOMEM at ")
    assert f"MiB of huge pages are missing, but your control group v2:/{where.name} has " in error
    assert f"{file} is {human_size(5 * PAGE)}, " in error
    assert pool.reserved == reserved
    (where / file).write_text("max")
    mount.write("tasks/t/control", "resume")
    assert mount.cat("tasks/t/wait").status == 0
    assert mount.read("tasks/t/state") == "done\n"
    for number in range(16):
        assert (huge / f"copy/{number}").read_bytes() == b"x" * (2 * PAGE)
    shutil.rmtree(huge / "copy")


def test_what_is_reserved_already_stays_so(mount: Mount, where: Path, huge: Path) -> None:
    """The kernel refuses a limit below it."""
    at_work(mount, where, f"fallocate path={huge}/f length=64M {SLOW}")
    (where / "hugetlb.2MB.rsvd.max").write_text(str(64 * MIB))
    assert end(mount) == "done"
    outcome = start_in(mount, where, f"fallocate path={huge}/g length=2M")
    assert outcome.errname == "ENOMEM"
    assert f"v2:/{where.name} has 0B left: hugetlb.2MB.rsvd.max is 64.0MiB" in mount.read("info/last_cmd_status")
    (huge / "f").unlink()


def test_processes(mount: Mount, memory: Path) -> None:
    """A task that gets no helper thread any more continues without."""
    with group("pids") as where:
        pid = at_work(mount, where, f"fallocate path={memory}/f length=64M max_threads=1 {SLOW}")
        threads = len(os.listdir(f"/proc/{pid}/task"))
        (where / "pids.max").write_text("0")
        mount.write("tasks/t/max_threads", "2")
        assert end(mount) == "done"
        assert threads == 2  # the first, and the one that takes commands
        assert start_in(mount, where, f"fallocate path={memory}/g length=1M").status != 0
        assert not (memory / "g").exists()
        (memory / "f").unlink()


def test_cpus(mount: Mount, memory: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    with group("cpuset") as where:
        pid = at_work(mount, where, f"fallocate path={memory}/f length=64M {SLOW}")
        (where / "cpuset.cpus").write_text(str(cpu))
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(ProcessLookupError):  # a thread that has ended
                assert os.sched_getaffinity(int(thread)) == {cpu}
        assert end(mount) == "done"
        (memory / "f").unlink()
