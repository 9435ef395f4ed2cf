"""``collapse`` beside a loop in C and khugepaged: ``python -m bench.collapse [--smoke]`` (as root)."""

from __future__ import annotations

import functools
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.answering import AnsweringProcess
from bench.harness import Contender, Goal, Section, Table, alternate, main
from bench.main_job import THREADS
from bench.mounts import Ktaskfs, directory
from bench.peers import build, inner_seconds
from ktaskfs.units import human_size

if TYPE_CHECKING:
    from bench.harness import Settings

HUGE: Final = 2 << 20
MAPPING: Final = """
import ctypes, mmap, sys
size, huge = int(sys.argv[1]), 2 << 20
memory = mmap.mmap(-1, size + huge, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = -(-ctypes.addressof(ctypes.c_char.from_buffer(memory)) // huge) * huge
print(address, flush=True)
for line in sys.stdin:
    memory.madvise(mmap.MADV_DONTNEED)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[::4096] = b"x" * (len(memory) // 4096)
    memory.madvise(mmap.MADV_HUGEPAGE)
    print(flush=True)
"""
"""Prints an address. When asked, replaces all its memory by new small pages."""
WATCHED: Final = 12.0
"""Seconds for which khugepaged is watched: it sleeps for ten between two looks."""


class Process(AnsweringProcess):
    """A process with so many bytes of memory in small pages."""

    def __init__(self, size: int) -> None:
        super().__init__(MAPPING, size)
        self.size = size
        self.address = int(self.greeting)

    def huge(self) -> int:
        """Bytes in huge pages."""
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages:"))

    def require_huge(self) -> None:
        """RuntimeError unless all of the memory is in huge pages."""
        if self.huge() < self.size:
            raise RuntimeError(f"{self.huge()} bytes of {self.size} are in huge pages")


def measure(settings: Settings) -> list[Section]:
    size = settings.size // HUGE * HUGE
    with ExitStack() as stack:
        where = stack.enter_context(directory())
        mount = stack.enter_context(Ktaskfs(where / "mnt", where / "state"))
        process = Process(size)
        stack.callback(process.close)
        program = build("collapse")

        def ours(threads: int) -> float:
            spec = f"collapse pid={process.pid} mapping={process.address:#x} max_threads={threads} name=c replace=1"
            begin = time.perf_counter()
            mount.submit(spec)
            mount.wait("c")
            taken = time.perf_counter() - begin
            process.require_huge()
            return taken

        def theirs(threads: int) -> float:
            taken = inner_seconds(program, process.pid, process.address, size, threads)
            process.require_huge()
            return taken

        contenders = [
            Contender(f"{who}, {threads} threads", functools.partial(run, threads), process.ask)
            for threads in (1, THREADS)
            for who, run in (("ktaskfs", ours), ("C", theirs))
        ]
        series = alternate(contenders, settings.rounds, calm=not settings.smoke)
        tables = [] if settings.smoke else [watch_khugepaged(process)]
    text = "speed of ktaskfs against C"
    goals = [Goal(text, f"C, {n} threads", f"ktaskfs, {n} threads", least=0.9) for n in (1, THREADS)]
    title = f"`collapse`, {human_size(size)} of private memory"
    note = "The time of ktaskfs includes the start of the task; that of C does not include the start of its process."
    return [Section(title, series, work=size, goals=goals, note=note, tables=tables)]


def watch_khugepaged(process: Process) -> Table:
    """The result of khugepaged alone on the same memory, with its current settings."""
    process.ask()
    before = process.huge()
    time.sleep(WATCHED)
    rate = (process.huge() - before) / WATCHED
    return Table(["by itself", "MiB/s"], [["khugepaged", f"{rate / (1 << 20):.1f}"]])


if __name__ == "__main__":
    main("collapse", "Huge pages for a process", measure, size="1G")
