"""``migrate`` compared with migratepages(8), which moves the mapped pages of a process.

Usage: python -m bench.migration [--smoke] [--rounds N] [--size BYTES] (as root)
With only one NUMA node it runs in the tests' virtual machine, whose processors are emulated.
Includes migratepages if it is installed (Debian: numactl).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.harness import HERE, Contender, Section, Series, Settings, alternate, main, seconds
from bench.main_job import PAGE, THREADS, job
from bench.mounts import Ktaskfs, directory, hugetlbfs
from bench.pool import reserved
from ktaskfs.host.kernel import Kernel
from ktaskfs.host.topology import read_nodes
from ktaskfs.units import human_size
from tests.numa import machine
from tests.support.packages import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

MIGRATEPAGES: Final = "migratepages"
EMULATED_SIZE: Final = 128 << 20
"""Fits twice on either node of the virtual machine."""
HOLDER: Final = """
import mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
    for position in range(0, len(memory), int(sys.argv[2])):
        memory[position]
    print("mapped", flush=True)
    sys.stdin.read()
"""
"""Maps a file and touches its pages, like a user of the file."""


@contextlib.contextmanager
def mapped(file: Path) -> Iterator[int]:
    """A process that has the file mapped; gives its pid."""
    command = [sys.executable, "-c", HOLDER, str(file), str(PAGE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != b"mapped\n":
            raise RuntimeError(f"{file} cannot be mapped")
        yield process.pid
        process.stdin.close()


def require_on(pid: int, file: Path, node: int, pages: int) -> None:
    """RuntimeError unless all pages of the file are on the node, as the kernel reports for their mapping."""
    lines = [line for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines() if str(file) in line]
    found = {int(nid): int(count) for line in lines for nid, count in re.findall(r" N(\d+)=(\d+)", line)}
    if found != {node: pages}:
        raise RuntimeError(f"pages by node: {found}; all {pages} should be on {node}")


def measured(nodes: tuple[int, int], size: int, settings: Settings) -> list[Series]:
    """All contenders: from the first of the nodes to the second."""
    home, away = nodes
    with ExitStack() as stack:
        where = stack.enter_context(directory())
        stack.enter_context(reserved(PAGE, size, nodes))
        file = stack.enter_context(hugetlbfs(where / "huge", PAGE)) / "target"
        mount = stack.enter_context(Ktaskfs(where / "mnt", where / "state"))
        job(mount, "fallocate", file, f"length={size} nodes={home}")
        stack.callback(file.unlink)
        pid = stack.enter_context(mapped(file))

        def back() -> None:
            job(mount, "migrate", file, f"nodes={home}")
            require_on(pid, file, home, size // PAGE)

        def ours(threads: int) -> float:
            taken = job(mount, "migrate", file, f"nodes={away} max_threads={threads}")
            require_on(pid, file, away, size // PAGE)
            return taken

        def theirs() -> float:
            command = [MIGRATEPAGES, str(pid), str(home), str(away)]
            taken = seconds(lambda: subprocess.run(command, check=True))
            require_on(pid, file, away, size // PAGE)
            return taken

        contenders = [
            Contender("ktaskfs, 1 thread", lambda: ours(1), back),
            Contender(f"ktaskfs, {THREADS} threads", lambda: ours(THREADS), back),
        ]
        if shutil.which(MIGRATEPAGES):
            contenders.append(Contender(f"{MIGRATEPAGES}(8)", theirs, back))
        return alternate(contenders, settings.rounds, calm=not settings.smoke)


def command_inside(size: int, settings: Settings) -> str:
    """The script of a virtual machine: ``inside``."""
    call = f"import bench.migration as b; b.inside({size}, {settings.rounds}, {settings.smoke})"
    return f"cd {shlex.quote(str(HERE.parent))} && {shlex.join([sys.executable, '-c', call])}"


def emulated(size: int, settings: Settings) -> list[Series]:
    """The same in a virtual machine; Unavailable where there can be none, RuntimeError if it went wrong there."""
    status, output = machine.run(command_inside(size, settings))
    printed = re.search(r"^series (.*)$", output, re.MULTILINE)
    if status != 0 or printed is None:
        raise RuntimeError(f"in the virtual machine:\n{output}")
    return [Series(name, values) for name, values in json.loads(printed[1])]


def inside(size: int, rounds: int, smoke: bool) -> None:
    """Measure, and print the series in a line of JSON."""
    series = measured((0, 1), size, Settings(rounds, size, smoke))
    print("series", json.dumps([(each.name, each.values) for each in series]))


def measure(settings: Settings) -> list[Section]:
    with contextlib.closing(Kernel.open()) as kernel:
        nodes = [node.nid for node in read_nodes(kernel) if node.total]
    if len(nodes) > 1:
        size = settings.size // PAGE * PAGE
        series = measured((nodes[0], nodes[1]), size, settings)
        note = f"From node {nodes[0]} to node {nodes[1]}; another process has the file mapped."
    else:
        size = min(settings.size, EMULATED_SIZE)
        note = (
            f"This machine has one node, so this was measured in a virtual machine with two. The {os.cpu_count()} "
            "processors here emulate its four: seconds and GiB/s mean nothing, ratios little. Another process has "
            "the file mapped. Most of the time of ktaskfs is the start of a task, whose Python is emulated, too: a "
            "task of 16 MiB took 0.19 s."
        )
        try:
            series = emulated(size, settings)
        except Unavailable as error:
            return [
                Section(
                    "`migrate`",
                    [],
                    note=f"This machine has one node, and no virtual machine with two could be used: {error}",
                )
            ]
    return [Section(f"`migrate`, {human_size(size)} of 2 MiB pages", series, work=size, note=note)]


if __name__ == "__main__":
    main("migration", "Moving pages to another node", measure, size="1G")
