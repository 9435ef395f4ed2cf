"""Refusals because of the limits of a caller's control groups: their messages, and their remains."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from ktaskfs.units import human_size
from tests.attacks.callers import wait_for_worker
from tests.mount.test_control_groups import PAGE, huge, refused_in, start_in
from tests.support.cgroups import group, mount_point
from tests.support.poll import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Mount

__all__ = ["huge"]

pytestmark = pytest.mark.usefixtures("root", "patient")

MIB = 1 << 20
VERSION_2 = mount_point("memory") == mount_point("")
MEMORY_MAX, MEMORY_USED = (
    ("memory.max", "memory.current") if VERSION_2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
)


@pytest.mark.parametrize("file", ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"])
@pytest.mark.parametrize("above", [False, True], ids=["the caller's group", "the group above it"])
def test_more_huge_pages_than_the_group_may_have_are_refused(
    mounted: Mount, huge: Path, file: str, above: bool
) -> None:
    with group("", {file: str(20 * MIB), "cgroup.subtree_control": "+hugetlb" if above else ""}) as limited:
        if above:
            with group("", below=limited) as inner:
                refused = refused_in(mounted, inner, f"fallocate path={huge}/f length=100M")
        else:
            refused = refused_in(mounted, limited, f"fallocate path={huge}/f length=100M")
        assert refused.errname == "ENOMEM"
        assert f"v2:/{limited.name} " in refused.words
        assert f"{file} is 20.0MiB, 0B in use" in refused.words
        assert not (huge / "f").exists()
        if not above:  # and no less
            assert start_in(mounted, limited, f"fallocate name=t path={huge}/f length=20M").status == 0
            assert mounted.cat("tasks/t/wait").status == 0
            assert mounted.read("tasks/t/state") == "done\n"
            (huge / "f").unlink()


@pytest.mark.parametrize("file", ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"])
def test_whatever_takes_pages_is_refused_past_the_limit(mounted: Mount, huge: Path, memory: Path, file: str) -> None:
    source = memory / "source"
    source.write_bytes(bytes(40 * MIB))
    specs = (f"copy source={source}", "fallocate length=40M", "fallocate length=40M keep_size=1")
    with group("", {file: str(20 * MIB)}) as where:
        for spec, plan in itertools.product(specs, (0, 1)):
            refused = refused_in(mounted, where, f"{spec} path={huge}/f plan={plan}")
            assert refused.errname == "ENOMEM", spec
            assert f"{file} is 20.0MiB, 0B in use" in refused.words
            assert not (huge / "f").exists()


def test_a_limit_on_huge_pages_that_is_met_at_work_is_named(mounted: Mount, huge: Path) -> None:
    with group("") as where:
        spec = f"fallocate name=t path={huge}/f length=64M chunk=2M rate_max=1 max_threads=1"
        assert start_in(mounted, where, spec).status == 0
        wait_for_worker(mounted, "t")
        until(lambda: int((where / "hugetlb.2MB.current").read_text()) >= PAGE, "a page is charged")
        (where / "hugetlb.2MB.max").write_text(str(2 * PAGE))
        mounted.write("tasks/t/rate_max", "max")
        assert mounted.cat("tasks/t/wait").status == 0
        assert mounted.read("tasks/t/state") == "failed\n"
        error = mounted.read("tasks/t/error")
        assert error.startswith("ENOMEM at ")
        assert f"v2:/{where.name} has 0B left: hugetlb.2MB.max is {human_size(2 * PAGE)}" in error
        (huge / "f").unlink()


def test_more_memory_than_the_group_may_have_is_refused(mounted: Mount, memory: Path) -> None:
    with group("memory", {MEMORY_MAX: "64M"}) as where:
        for spec in (f"fallocate path={memory}/f length=100M", f"copy path={memory}/f source={memory}/source"):
            with (memory / "source").open("wb") as source:
                source.write(bytes(100 * MIB))
            refused = refused_in(mounted, where, spec)
            assert refused.errname == "ENOMEM"
            assert where.name in refused.words
            assert f"{MEMORY_MAX} is 64.0MiB" in refused.words
            assert not (memory / "f").exists()
        assert start_in(mounted, where, f"fallocate name=t path={memory}/f length=32M").status == 0
        assert mounted.cat("tasks/t/wait").status == 0
        assert mounted.read("tasks/t/state") == "done\n"
        (memory / "f").unlink()


def test_a_limit_on_memory_that_is_met_at_work_ends_the_task_and_kills_nobody(mounted: Mount, memory: Path) -> None:
    with group("memory") as where:
        spec = f"fallocate name=t path={memory}/f length=200M chunk=8M rate_max=1"
        assert start_in(mounted, where, spec).status == 0
        pid = wait_for_worker(mounted, "t")
        until(lambda: int((where / MEMORY_USED).read_text()) >= 8 * MIB, "some memory is charged")
        (where / MEMORY_MAX).write_text("64M")
        mounted.write("tasks/t/rate_max", "max")
        assert mounted.cat("tasks/t/wait").status == 0
        assert mounted.read("tasks/t/state") == "failed\n", pid
        error = mounted.read("tasks/t/error")
        assert re.match(rf"ENOMEM at \d+: .* {MEMORY_MAX} is 64\.0MiB, \S+B in use$", error), error
        assert kills(where) == 0
        (memory / "f").unlink()


def test_a_directory_is_copied_up_to_the_limit_and_nobody_is_killed(mounted: Mount, memory: Path, disk: Path) -> None:
    """With files of one page each, and one of several chunks. A sparse file takes what it has."""
    source, limit = disk / "source", 64 * MIB
    source.mkdir()
    for number in range(1000):
        (source / f"small{number}").write_bytes(b"x")
    with (source / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
        sparse.write(b"x" * MIB)
    (source / "large").write_bytes(bytes(range(256)) * (MIB * 3 // 8))
    with group("memory") as where:
        spec = f"copy name=t source={source} path={memory}/copy rate_max=1"
        assert start_in(mounted, where, spec).status == 0
        wait_for_worker(mounted, "t")
        (where / MEMORY_MAX).write_text(str(limit))
        mounted.write("tasks/t/rate_max", "max")
        assert mounted.cat("tasks/t/wait").status == 0
        assert mounted.read("tasks/t/state") == "failed\n"
        error = mounted.read("tasks/t/error")
        assert re.match(rf"ENOMEM at \d+: .* {MEMORY_MAX} is {human_size(limit)}, \S+B in use$", error), error
        assert kills(where) == 0
        (source / "large").unlink()
        assert start_in(mounted, where, f"copy name=u source={source} path={memory}/other").status == 0
        assert mounted.cat("tasks/u/wait").status == 0
        assert mounted.read("tasks/u/state") == "done\n"
        shutil.rmtree(memory / "copy")
        shutil.rmtree(memory / "other")
    shutil.rmtree(source)


def kills(where: Path) -> int:
    text = (where / ("memory.events" if VERSION_2 else "memory.oom_control")).read_text()
    return int(dict(line.split() for line in text.splitlines())["oom_kill"])


def test_page_cache_counts_as_free(mounted: Mount, memory: Path, disk: Path) -> None:
    with group("memory", {MEMORY_MAX: "64M"}) as where:
        script = 'echo $$ > "$1/cgroup.procs"; dd if=/dev/zero of="$2" bs=1M count=60 status=none; sync "$2"'
        assert mounted.shell(script, str(where), str(disk / "file")).status == 0
        assert int((where / MEMORY_USED).read_text()) > 50 * MIB
        assert start_in(mounted, where, f"fallocate name=t path={memory}/f length=32M").status == 0
        assert mounted.cat("tasks/t/wait").status == 0
        assert mounted.read("tasks/t/state") == "done\n"
        (memory / "f").unlink()
        (disk / "file").unlink()


def test_a_worker_that_is_killed_for_the_groups_limit_is_interrupted_and_says_so(mounted: Mount, memory: Path) -> None:
    """The worker is killed first, because of its caller's OOM score; then the process with the memory."""
    with group("memory", {MEMORY_MAX: "64M"}) as where:
        spec = f"fallocate name=t path={memory}/f length=8M chunk=4096 rate_max=1"
        script = 'echo $$ > "$1/cgroup.procs"; echo 1000 > /proc/self/oom_score_adj; echo "$2" > tasks/control'
        assert mounted.shell(script, str(where), spec).status == 0
        wait_for_worker(mounted, "t")
        hog = 'echo $$ > "$1/cgroup.procs"; exec "$2" -c "bytearray(200 << 20)"'
        assert mounted.shell(hog, str(where), sys.executable).status != 0
        assert mounted.cat("tasks/t/wait").status == 0
        assert mounted.read("tasks/t/state") == "interrupted\n"
        assert "killed by the memory limit of your control group " in mounted.read("tasks/t/error")
        assert where.name in mounted.read("tasks/t/error")
        assert mounted.write("tasks/t/rate_max", "max") == (0, None)
        assert mounted.write("tasks/t/control", "resume") == (0, None)
        assert mounted.cat("tasks/t/wait").status == 0
        assert mounted.read("tasks/t/state") == "done\n"


def test_a_worker_whose_group_is_killed_is_interrupted_and_can_be_resumed(mounted: Mount, memory: Path) -> None:
    with group("") as where:
        spec = f"fallocate name=t path={memory}/f length=8M chunk=4096 rate_max=1"
        assert start_in(mounted, where, spec).status == 0
        wait_for_worker(mounted, "t")
        (where / "cgroup.kill").write_text("1")
        assert mounted.cat("tasks/t/wait").status == 0
        assert mounted.read("tasks/t/state") == "interrupted\n"
        assert mounted.read("tasks/t/error").endswith("the worker died, killed by signal 9 (SIGKILL)\n")
    assert mounted.write("tasks/t/rate_max", "max") == (0, None)
    assert mounted.write("tasks/t/control", "resume") == (0, None)
    assert mounted.cat("tasks/t/wait").status == 0
    assert mounted.read("tasks/t/state") == "done\n"


def test_a_frozen_worker_can_be_killed(mounted: Mount, memory: Path) -> None:
    """In version 2; in version 1 it dies after the thaw."""
    with group("") as where:
        assert start_in(mounted, where, f"fallocate name=t path={memory}/f length=8M chunk=4096 rate_max=1").status == 0
        wait_for_worker(mounted, "t")
        (where / "cgroup.freeze").write_text("1")
        until(lambda: "is frozen)" in mounted.read("tasks/t/status"), "it is frozen")
        assert mounted.write("tasks/t/control", "kill") == (0, None)
        assert mounted.cat("tasks/t/wait").status == 0
        assert mounted.read("tasks/t/state") == "interrupted\n"
