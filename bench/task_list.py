"""The table of all tasks: the cost of making it, and 512 concurrent readers.

Usage: python -m bench.task_list [--smoke] [--rounds N] (as root: it mounts a tmpfs)
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from bench.harness import Contender, Goal, Section, Series, Settings, alternate, main, seconds
from bench.interface import crowd, tmpfs
from bench.mounts import directory

if TYPE_CHECKING:
    from pathlib import Path

NOBODY: Final = 65534
CROWD: Final = """
import sys, threading, time
path, count, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def read():
    barrier.wait()
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    barrier.wait()
for _ in range(rounds):
    moments = []
    barrier = threading.Barrier(count, action=lambda: moments.append(time.perf_counter()))
    threads = [threading.Thread(target=read) for _ in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    print(moments[1] - moments[0], flush=True)
"""
"""So many threads read a file to its end, again and again; prints how long (s) each time, from the moment at which all
are ready until the last has it."""
OTHER: Final = """
import json, os, select, sys, time
taken = []
while not taken or not select.select([sys.stdin], [], [], 0)[0]:
    start = time.perf_counter()
    fd = os.open(sys.argv[1], os.O_RDONLY)
    os.read(fd, 4096)
    os.close(fd)
    taken.append(time.perf_counter() - start)
    time.sleep(0.001)
print(json.dumps(taken))
"""
"""Another user, who reads something small about once in a millisecond, until the standard input is closed."""


def python(source: str, *arguments: object, user: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-I", "-c", source, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=user)


def crowded(mount: Path, file: str, readers: int, rounds: int) -> tuple[Series, Series]:
    """The time of a crowd of readers, and the waiting time of another user meanwhile."""
    with python(OTHER, mount / "version", user=NOBODY) as other:
        with python(CROWD, mount / file, readers, rounds) as threads:
            taken = [float(line) for line in threads.communicate()[0].splitlines()]
        waits = json.loads(other.communicate()[0])
    return Series(f"{file}, {readers} readers", taken), Series(f"another user reads version beside {file}", waits)


def measure(settings: Settings) -> list[Section]:
    ended, running, readers = (10, 2, 20) if settings.smoke else (1000, 64, 512)
    many = f"{ended} ended and {running} running"
    with directory() as where, tmpfs(where / "memory") as memory:
        where.chmod(0o755)
        for name in ("few", "many"):
            (where / name).mkdir()
        with (
            crowd(where / "few", memory, 1, 1) as (small, _),
            crowd(where / "many", memory, ended, running) as (large, _),
        ):

            def reading(mount: Path, file: str, tasks: str) -> Contender:
                def change() -> None:
                    """Otherwise who comes within a tenth of a second gets the same text."""
                    (mount / "tasks/x").mkdir()
                    (mount / "tasks/x").rmdir()

                return Contender(f"{file}, {tasks}", lambda: seconds((mount / file).read_bytes), change)

            alone = alternate(
                [
                    reading(mount.path, file, tasks)
                    for file in ("info/tasks", "info/tasks.json")
                    for mount, tasks in ((small, "2 tasks"), (large, many))
                ],
                10 * settings.rounds,
            )
            crowds = [crowded(large.path, file, readers, settings.rounds) for file in ("info/tasks", "info/tasks.json")]
            sizes = [len((large.path / file).read_bytes()) for file in ("info/tasks", "info/tasks.json")]
    worst = [Series(f"{others.name}, the slowest", [max(others.values)]) for _, others in crowds]
    return [
        Section(
            "Reading the whole table, made anew each time",
            alone,
            unit="ms",
            note=f"With {many} tasks the texts have {sizes[0]} and {sizes[1]} bytes.",
        ),
        Section(
            f"{readers} readers at once, until the last has all of it, with {many} tasks",
            [taken for taken, _ in crowds],
            unit="ms",
        ),
        Section(
            "How long another user waits meanwhile to open, read and close a small file",
            [*(others for _, others in crowds), *worst],
            unit="ms",
            goals=[Goal(each.name, each.name, None, most=0.1) for each in worst],
            note="The readers take CPU time from that user: they are 512 threads of one Python, on the same two CPUs.",
        ),
    ]


if __name__ == "__main__":
    main("task_list", "The table of all tasks", measure)
