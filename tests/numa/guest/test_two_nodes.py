"""Run in the virtual machine only: two nodes, processors 0 and 1 on the first, 2 and 3 on the second."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs import ktask
from tests.mount.test_control_groups import refused_in, start_in
from tests.support import filesystems
from tests.support.cgroups import group
from tests.support.poll import DEADLINE, until
from tests.support.refusals import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Mount

HUGE = 2 << 20
PAGES = 40
"""Huge pages on each node."""
CPUS = {0: {0, 1}, 1: {2, 3}}
NUMBERS = itertools.count()


def pool_file(node: int, what: str = "nr_hugepages") -> Path:
    """A file of the kernel about a node's pool."""
    return Path(f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/{what}")


def pool(node: int, what: str = "nr_hugepages") -> int:
    """The kernel's counts of a node's pool."""
    return int(pool_file(node, what).read_text())


def mapped_pages(path: Path) -> dict[int, int]:
    """The file's pages by node, as the kernel counts them in the page tables of a process that maps the file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        for position in range(0, len(memory), 4096):
            memory[position]
        lines = [line for line in Path("/proc/self/numa_maps").read_text().splitlines() if str(path) in line]
        return {int(node): int(count) for line in lines for node, count in re.findall(r" N(\d+)=(\d+)", line)}


def do(mount: Mount, spec: str, state: str = "done") -> str:
    """Run a task to its end; its result. Starts no program for a file: programs are emulated too."""
    task = mount.path / f"tasks/t{next(NUMBERS)}"
    (mount.path / "tasks/control").write_text(f"{spec} name={task.name}\n")
    assert (task / "wait").read_text().splitlines()[-1] == state, (task / "error").read_text()
    return (task / "result").read_text()


def rows(text: str) -> dict[str, list[str]]:
    """The lines of a table by their first word."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines()}


@pytest.fixture(scope="module", autouse=True)
def pages() -> Iterator[None]:
    """PAGES huge pages on each node, set up without our own code."""
    for node in (0, 1):
        pool_file(node).write_text(str(PAGES))
        assert pool(node) == PAGES
    yield
    for node in (0, 1):
        pool_file(node).write_text("0")


@pytest.fixture
def huge(area: Path) -> Iterator[Path]:
    with filesystems.hugetlbfs(area / "huge", HUGE) as path:
        yield path


def test_the_nodes_are_told(mounted: Mount) -> None:
    table = rows(mounted.read("info/nodes"))
    assert (table["0"][0], table["1"][0]) == ("0-1", "2-3")
    for node in (0, 1):
        meminfo = Path(f"/sys/devices/system/node/node{node}/meminfo").read_text()
        total = re.search(r"MemTotal: *(\d+) kB", meminfo)
        assert total is not None
        assert str(int(total[1]) << 10) in table[str(node)]
    pools = [line.split() for line in mounted.read("info/hugepages").splitlines()]
    assert [line[2:4] for line in pools if line[:2] in (["2M", "0"], ["2M", "1"])] == [[str(PAGES)] * 2] * 2


def test_reserve_on_both_nodes(mounted: Mount) -> None:
    table = rows(do(mounted, "reserve pages=101 size=2M nodes=0,1 force=1"))
    assert (pool(0), pool(1)) == (50, 51)
    assert (table["0"][2], table["1"][2], table["all"][:3]) == ("50", "51", [str(2 * PAGES), "101", "101"])
    do(mounted, "reserve pages=30 size=2M nodes=1 force=1")
    assert (pool(0), pool(1)) == (50, 30)
    do(mounted, f"reserve pages={2 * PAGES} force=1")
    assert (pool(0), pool(1)) == (PAGES, PAGES)


@contextlib.contextmanager
def all_taken(node: int) -> Iterator[None]:
    """For a body that reserves all memory of a node. The next test has memory again, even if this one fails."""
    try:
        yield
    finally:
        pool_file(node).write_text(str(PAGES))


@pytest.mark.parametrize("undo", [0, 1])
def test_reserve_more_than_there_is(mounted: Mount, undo: int) -> None:
    with all_taken(1):
        table = rows(do(mounted, f"reserve pages=100000 nodes=1 force=1 undo={undo}", "failed"))
        error = mounted.read(f"{sorted_tasks(mounted)[-1]}/error")
        assert error.startswith("ENOMEM at ")
        assert "finds no memory" in error
        assert table["1"][2] == str(pool(1))
        assert (pool(1) == PAGES) if undo else (PAGES < pool(1) < 100000)
        assert pool(0) == PAGES
        do(mounted, f"reserve pages={PAGES} nodes=1")


def test_reserve_what_the_node_cannot_give_is_refused_at_once(mounted: Mount) -> None:
    begin = 'echo "$1" > tasks/control'
    refused = refusal(mounted, lambda spec: mounted.shell(begin, spec), "reserve pages=100000 nodes=1")
    assert refused.errname == "ENOMEM"
    assert "force=1 tries anyway" in refused.words
    assert (pool(0), pool(1)) == (PAGES, PAGES)


def sorted_tasks(mount: Mount) -> list[str]:
    """The tasks' directories below the mount, oldest first."""
    names = [name for name in mount.shell("ls tasks").out.split() if re.fullmatch(r"t\d+", name)]
    return [f"tasks/{name}" for name in sorted(names, key=lambda name: int(name[1:]))]


def test_allocate_on_one_node(mounted: Mount, huge: Path) -> None:
    do(mounted, f"fallocate path={huge}/file length=32M nodes=1")
    assert mapped_pages(huge / "file") == {1: 16}
    assert (pool(0, "free_hugepages"), pool(1, "free_hugepages")) == (PAGES, PAGES - 16)


def test_allocate_half_on_each(mounted: Mount, huge: Path) -> None:
    do(mounted, f"fallocate path={huge}/file length=32M nodes=0,1 chunk=2M")
    assert mapped_pages(huge / "file") == {0: 8, 1: 8}
    assert (pool(0, "free_hugepages"), pool(1, "free_hugepages")) == (32, 32)
    result = do(mounted, f"survey path={huge}/file")
    assert result.endswith(f"offset length pages node\n0 {8 * HUGE} 8 0\n{8 * HUGE} {8 * HUGE} 8 1\n")
    assert rows(result)["node0"] == rows(result)["node1"] == ["8"]


def test_tmpfs_on_a_node(mounted: Mount, area: Path) -> None:
    with filesystems.tmpfs(area / "tmpfs", 64 << 20) as directory:
        file = directory / "file"
        do(mounted, f"fallocate path={file} length=16M nodes=1")
        assert mapped_pages(file) == {1: 4096}
        assert rows(do(mounted, f"survey path={file}"))["node1"] == ["4096"]


def test_copy_to_a_node(mounted: Mount, huge: Path, area: Path) -> None:
    source = area / "source"
    source.write_bytes(os.urandom(1 << 20) * 16)
    do(mounted, f"copy source={source} path={huge}/file nodes=1")
    assert mapped_pages(huge / "file") == {1: 8}
    assert do(mounted, f"compare source={source} path={huge}/file") == "equal\n"
    with filesystems.tmpfs(area / "tmpfs", 64 << 20, "huge=never") as directory:
        do(mounted, f"copy source={source} path={directory}/file nodes=1")
        assert mapped_pages(directory / "file") == {1: 4096}


def test_survey_with_holes(mounted: Mount, huge: Path) -> None:
    do(mounted, f"fallocate path={huge}/file offset=4M length=4M nodes=1")
    do(mounted, f"fallocate path={huge}/file offset=12M length=2M nodes=0")
    result = do(mounted, f"survey path={huge}/file")
    table = result.partition("node\n")[2].splitlines()
    assert [line.split()[2:] for line in table] == [["2", "hole"], ["2", "1"], ["2", "hole"], ["1", "0"]]
    assert [PAGES - pool(node, "free_hugepages") for node in (0, 1)] == [1, 2]


def test_threads_work_on_their_node_and_help_out_on_the_other() -> None:
    """Each chunk of a node is done by one of its processors; who has nothing left to do goes where there is more."""
    getcpu = ctypes.CDLL(None).sched_getcpu
    lock = threading.Lock()
    seen: list[tuple[int, int, int]] = []
    first_of: dict[int, int] = {}
    both, moved = threading.Barrier(2), threading.Event()

    def chunk(start: int, end: int) -> None:
        node, thread = int(start >= 1000), threading.get_native_id()
        with lock:
            begins = thread not in first_of and len(first_of) < 2
            first_of.setdefault(thread, node)
        if begins:
            both.wait(DEADLINE)
        elif node > first_of[thread]:
            moved.set()
        elif node:
            assert moved.wait(DEADLINE)
        for _ in range(2000):
            getcpu()
        with lock:
            seen.append((node, getcpu(), thread))

    ctl = ktask.Control(chunk, min_chunk_size=1, max_chunk_size=1, max_threads=2, cpu_percent=100)
    outcome = ktask.run_numa([ktask.Node(0, 4, 0), ktask.Node(1000, 400, 1)], ctl)
    assert outcome.threads == 2
    assert sorted(list(first_of.values())[:2]) == [0, 1], "each thread begins on a node of its own"
    assert len(seen) == 404
    for node, cpu, _ in seen:
        assert cpu in CPUS[node]
    mover = next(thread for thread, node in first_of.items() if node == 0)
    assert {cpu in CPUS[1] for node, cpu, thread in seen if thread == mover} == {False, True}, "it has moved"


def test_a_worker_of_a_task_is_on_its_node(mounted: Mount, huge: Path) -> None:
    """As ps sees it: the processor in the table of threads, and the affinity that the kernel has."""
    dirty_file = huge / "file"
    do(mounted, f"fallocate path={dirty_file} length=32M nodes=1")
    spec = f"clear path={dirty_file} nodes=1 chunk=2M rate_max=256K name=slow max_threads=2"
    assert mounted.write("tasks/control", spec) == (0, None)

    def at_work() -> list[list[str]]:  # a thread may have its first chunk before it is put there
        threads = [line.split() for line in mounted.read("tasks/slow/threads").splitlines()[1:]]
        assert {line[1] for line in threads} <= {"1"}
        return [line for line in threads if line[4] != "0"]

    until(lambda: at_work() != [], "the first chunk is done")
    pid = rows(mounted.read("tasks/slow/stat"))["pid"][0]
    for line in at_work():
        status = rows(Path(f"/proc/{pid}/task/{line[0]}/status").read_text())
        assert status["Cpus_allowed_list:"] == ["2-3"]
    mounted.write("tasks/slow/control", "cancel")
    assert mounted.read("tasks/slow/wait").splitlines()[-1] == "cancelled"


def test_migrate_to_the_other_node(mounted: Mount, huge: Path) -> None:
    file = huge / "file"
    do(mounted, f"fallocate path={file} length=32M nodes=0")
    os.truncate(file, 40 << 20)  # a hole at the end
    assert do(mounted, f"migrate path={file} nodes=1").splitlines() == [
        "moved 16",
        "there 0",
        "failed 0",
        "outcome node pages",
        "moved 1 16",
    ]
    os.truncate(file, 32 << 20)
    assert mapped_pages(file) == {1: 16}
    assert do(mounted, f"migrate path={file} nodes=0,1").splitlines()[-2:] == ["moved 0 8", "there 1 8"]
    assert mapped_pages(file) == {0: 8, 1: 8}
    assert rows(do(mounted, f"verify path={file} pattern=00"))["compared"] == [str(32 << 20)], "what was there is lost"


def test_pages_that_cannot_move_are_counted(mounted: Mount, huge: Path) -> None:
    """Beyond the pool the kernel takes free memory for a moved page; so there must be no free memory either."""
    do(mounted, f"fallocate path={huge}/file length={30 * HUGE} nodes=0")
    with all_taken(1):
        do(mounted, "reserve pages=100000 nodes=1 force=1 undo=0", "failed")
        do(mounted, f"fallocate path={huge}/other length={(pool(1, 'free_hugepages') - 4) * HUGE} nodes=1")
        result = rows(do(mounted, f"migrate path={huge}/file nodes=1"))
        moved, failed = int(result["moved"][1]), int(result["failed"][0])
        assert moved >= 4
        assert failed > 0
        assert moved + failed == 30
        assert result["ENOMEM"] == ["0", str(failed)]
        assert mapped_pages(huge / "file") == {0: failed, 1: moved}
        (huge / "other").unlink()
        do(mounted, f"reserve pages={PAGES} nodes=1")


def test_migrate_taken_back(mounted: Mount, huge: Path) -> None:
    """The task takes as many seconds as there are pages: it is at work when it is cancelled."""
    do(mounted, f"fallocate path={huge}/file length=80M nodes=0,1 chunk=2M")
    spec = f"migrate path={huge}/file nodes=1 undo=1 chunk=1 rate_max=1 max_threads=1 name=back"
    assert mounted.write("tasks/control", spec) == (0, None)
    until(lambda: mounted.read("tasks/back/progress") != "0 / 40\n", "the first page moved")
    mounted.write("tasks/back/control", "cancel")
    assert mounted.read("tasks/back/wait").splitlines()[-1] == "cancelled"
    assert rows(mounted.read("tasks/back/result"))["moved_back"][0] == "0"
    assert mapped_pages(huge / "file") == {0: 20, 1: 20}


def test_migrate_tmpfs_and_what_another_maps(mounted: Mount, area: Path) -> None:
    with filesystems.tmpfs(area / "tmpfs", 64 << 20, "huge=always") as directory:
        file = directory / "file"
        do(mounted, f"fallocate path={file} length=8M nodes=0")
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as memory:
            assert sum(memory[position] for position in range(0, len(memory), 4096)) == 0
            result = rows(do(mounted, f"migrate path={file} nodes=1"))
        assert result["failed"] == ["0"], "root may move what others have mapped"
        assert mapped_pages(file) == {1: 2048}


def test_what_a_process_has_goes_to_the_other_node(mounted: Mount) -> None:
    size = 24 << 20
    program = f"import mmap, sys; m = mmap.mmap(-1, {size}); m.madvise(15); m[:] = bytes(len(m)); print(flush=True)"
    command = ["taskset", "--cpu-list", "0-1", sys.executable, "-c", f"{program}; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        least = size // 4096
        found = rows(do(mounted, f"survey pid={process.pid}").partition("start end ")[0])
        assert int(found["node0"][0]) >= least > int(found["node1"][0])
        moved = rows(do(mounted, f"migrate pid={process.pid} nodes=1").partition("outcome node ")[0])
        assert int(moved["moved"][0]) >= least
        found = rows(do(mounted, f"survey pid={process.pid}").partition("start end ")[0])
        assert int(found["node1"][0]) >= least > int(found["node0"][0])
        counted = re.findall(r" N1=(\d+)", Path(f"/proc/{process.pid}/numa_maps").read_text())
        assert sum(map(int, counted)) >= least, "the kernel counts them there, too"
        process.kill()


def test_a_caller_that_may_use_one_node_only(mounted: Mount, huge: Path) -> None:
    """More pages than there are on it are refused, by a plan too, with words; what fits is allocated there."""
    with group("cpuset", {"cpuset.mems": "1"}) as where:
        for plan in (0, 1):
            refused = refused_in(mounted, where, f"fallocate path={huge}/file length=120M plan={plan}")
            assert refused.errname == "ENOMEM"
            assert f"60 huge pages are needed, but your memory nodes (1) have {PAGES} free" in refused.words
        assert start_in(mounted, where, f"fallocate path={huge}/file length={PAGES * HUGE} name=t").status == 0
        assert mounted.cat("tasks/t/wait").out.splitlines()[-1] == "done"
        assert mapped_pages(huge / "file") == {1: PAGES}
        (huge / "file").unlink()
