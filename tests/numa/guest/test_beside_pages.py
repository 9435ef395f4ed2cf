"""Run in the virtual machine only: a task whose spec has no nodes works beside the pages that are there."""

from __future__ import annotations

import ctypes
import dataclasses
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs.ktask import Job
from tests.numa.guest.test_two_nodes import CPUS, HUGE, do, huge, mapped_pages, pages, rows
from tests.support import filesystems
from tests.support.poll import until
from tests.support.runner import runner

if TYPE_CHECKING:
    from tests.support.daemon import Mount
    from tests.support.runner import Runner

__all__ = ["huge", "pages", "runner"]

SIZE = 32 * HUGE
"""The shortest range that a task looks at."""


@pytest.mark.parametrize("name", ["clear", "fill", "verify", "checksum", "compare"])
def test_every_chunk_is_done_beside_its_pages(mounted: Mount, huge: Path, runner: Runner, name: str) -> None:
    """By a processor of the node that the kernel has allocated the first half on, then the second."""
    getcpu = ctypes.CDLL(None).sched_getcpu
    for offset, node in ((0, 1), (SIZE // 2, 0)):
        do(mounted, f"fallocate path={huge}/file offset={offset} length={SIZE // 2} nodes={node}")
    assert mapped_pages(huge / "file") == {0: 16, 1: 16}
    texts: dict[str, dict[str, object]] = {
        "fill": {"pattern": "5a"},
        "verify": {"pattern": "00"},
        "compare": {"source": huge / "file"},
    }
    plan = runner.prepare(name, path=huge / "file", chunk=HUGE, **texts.get(name, {}))
    lock, seen = threading.Lock(), list[tuple[bool, set[int]]]()

    def chunk(start: int, end: int) -> object:
        before = getcpu()
        done = plan.control.thread_func(start, end)
        with lock:
            seen.append((start < SIZE // 2, {before, getcpu()}))
        return done

    control = dataclasses.replace(plan.control, thread_func=chunk, max_threads=3, max_chunk_size=HUGE, cpu_percent=100)
    outcome = Job(plan.nodes, control).run()
    plan.finish(outcome)
    assert outcome.units_done == SIZE
    assert [(node.nid, node.start, node.size) for node in plan.nodes] == [(1, 0, SIZE // 2), (0, SIZE // 2, SIZE // 2)]
    assert {first for first, _ in seen} == {False, True}
    assert all(cpus <= CPUS[int(first)] for first, cpus in seen)


def test_the_threads_of_a_task_are_on_both_nodes(mounted: Mount, huge: Path) -> None:
    """As the table of threads and the kernel have it."""
    do(mounted, f"fallocate path={huge}/file length={SIZE} nodes=0,1 chunk=2M")
    spec = f"clear path={huge}/file chunk=2M rate_max=256K name=beside max_threads=2"
    assert mounted.write("tasks/control", spec) == (0, None)

    def at_work() -> list[list[str]]:  # a thread may have its first chunk before it is put there
        threads = [line.split() for line in mounted.read("tasks/beside/threads").splitlines()[1:]]
        return [line for line in threads if line[4] != "0"]

    def on_both() -> bool:
        assert mounted.read("tasks/beside/state") in ("starting\n", "running\n"), mounted.read("tasks/beside/error")
        return {line[1] for line in at_work()} == {"0", "1"}

    until(on_both, "a chunk is done on each node")
    pid = rows(mounted.read("tasks/beside/stat"))["pid"][0]
    for line in at_work():
        status = rows(Path(f"/proc/{pid}/task/{line[0]}/status").read_text())
        assert status["Cpus_allowed_list:"] == [{"0": "0-1", "1": "2-3"}[line[1]]]
    mounted.write("tasks/beside/control", "cancel")
    assert mounted.read("tasks/beside/wait").splitlines()[-1] == "cancelled"


def test_a_copy_of_huge_pages_lies_beside_its_source(mounted: Mount, huge: Path, area: Path) -> None:
    do(mounted, f"fallocate path={huge}/file length={SIZE} nodes=1")
    # From a node that is full of cached files, the kernel takes pages of the other one.
    Path("/proc/sys/vm/drop_caches").write_text("1")
    with filesystems.tmpfs(area / "tmpfs", 80 << 20, "huge=never") as directory:
        do(mounted, f"copy source={huge}/file path={directory}/file")
        assert mapped_pages(directory / "file") == {1: SIZE // 4096}
        found = do(mounted, f"checksum path={directory}/file")
        assert found == do(mounted, f"checksum path={huge}/file")


def test_pages_of_a_file_with_a_policy_are_made_beside(area: Path, runner: Runner) -> None:
    """By the processors of the node that the mount's policy takes them from."""
    getcpu = ctypes.CDLL(None).sched_getcpu
    with filesystems.tmpfs(area / "tmpfs", 80 << 20, "huge=never,mpol=bind:1") as directory:
        (directory / "file").touch()
        plan = runner.prepare("fallocate", path=directory / "file", length=SIZE)
        seen: set[int] = set()

        def chunk(start: int, end: int) -> object:
            seen.add(getcpu())
            return plan.control.thread_func(start, end)

        control = dataclasses.replace(plan.control, thread_func=chunk, max_threads=2, cpu_percent=100)
        plan.finish(Job(plan.nodes, control).run())
        assert seen <= CPUS[1]
        assert mapped_pages(directory / "file") == {1: SIZE // 4096}
