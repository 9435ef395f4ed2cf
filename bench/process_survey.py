"""``survey pid=`` beside /proc/PID/smaps: how long it takes, and how long the process waits for an mmap(2) meanwhile.

Usage: python -m bench.process_survey [--smoke] [--rounds N] [--size BYTES] (as root)
"""

from __future__ import annotations

import functools
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.answering import AnsweringProcess
from bench.harness import Contender, Goal, Section, alternate, main, seconds
from bench.main_job import THREADS
from bench.mounts import Ktaskfs, directory
from ktaskfs.units import human_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.harness import Settings

TARGET: Final = """
import mmap, sys, threading, time
size = int(sys.argv[1])
memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
memory[::4096] = b"x" * (size // 4096)
longest = 0.0
def loop():
    global longest
    while True:
        begin = time.perf_counter()
        mapping = mmap.mmap(-1, 4096)
        longest = max(longest, time.perf_counter() - begin)
        mapping.close()
        time.sleep(0.0002)
threading.Thread(target=loop, daemon=True).start()
print(flush=True)
for line in sys.stdin:
    print(longest, flush=True)
    longest = 0.0
"""
"""Has memory in small pages, calls mmap(2) repeatedly, and answers with the seconds of its longest call since the last
answer."""
READ_SIZE: Final = 1 << 20


def read_all(path: Path) -> None:
    """As cat(1) does."""
    with path.open("rb", buffering=0) as file:
        while file.read(READ_SIZE):
            pass


def measure(settings: Settings) -> list[Section]:
    with ExitStack() as stack:
        where = stack.enter_context(directory())
        mount = stack.enter_context(Ktaskfs(where / "mnt", where / "state"))
        target = AnsweringProcess(TARGET, settings.size)
        stack.callback(target.close)

        def survey(threads: int) -> None:
            mount.submit(f"survey pid={target.pid} max_threads={threads} name=s replace=1")
            mount.wait("s")

        looks: dict[str, Callable[[], object]] = {
            f"ktaskfs, {threads} threads": functools.partial(survey, threads) for threads in (1, THREADS)
        }
        for name in ("smaps", "smaps_rollup"):
            looks[name] = functools.partial(read_all, Path(f"/proc/{target.pid}/{name}"))

        def waited(look: Callable[[], object]) -> float:
            target.ask()
            look()
            return float(target.ask())

        looks_and_nothing = looks | {"nothing": functools.partial(time.sleep, 0.05)}
        calm = not settings.smoke
        times = alternate(
            [Contender(name, functools.partial(seconds, look)) for name, look in looks.items()],
            settings.rounds,
            calm=calm,
        )
        waits = alternate(
            [Contender(name, functools.partial(waited, look)) for name, look in looks_and_nothing.items()],
            settings.rounds,
            calm=calm,
        )
    ours = f"ktaskfs, {THREADS} threads"
    memory = f"{human_size(settings.size)} of private memory in pages of 4 KiB"
    return [
        Section(
            f"`survey` of a process with {memory}",
            times,
            unit="ms",
            goals=[Goal("speed of ktaskfs against smaps", "smaps", ours, least=1.0)],
            note="The time of ktaskfs includes the start of the task; that of smaps does not include the start of a "
            "process that reads it.",
        ),
        Section(
            f"The longest mmap(2) of the process meanwhile, {memory}",
            waits,
            unit="ms",
            goals=[Goal("smaps / ktaskfs", "smaps", ours, least=2.0)],
            note=(
                "A reader of smaps holds the lock of the address space for a whole mapping, a survey only for a "
                "chunk of 64 MiB. *nothing*: 50 ms in which nobody looks."
            ),
        ),
    ]


if __name__ == "__main__":
    main("process_survey", "Looking at a process", measure, size="4G")
