"""The interface under load: ten thousand tasks, five hundred readers of streams.

Usage: python -m bench.interface [--smoke] [--rounds N] (as root: it mounts a tmpfs)
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from bench.harness import Contender, Goal, Section, Series, Settings, alternate, main, seconds
from bench.mounts import Ktaskfs, directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB: Final = 1 << 20
SLOW: Final = "rate_max=4K chunk=4K"
READERS: Final = 500
"""Root may have 512 streams open, half of all (control/limits.py)."""
READER: Final = """
import os, sys, threading
def read(path):
    try:
        stream = open(path, "rb", buffering=0)
    except OSError as error:
        print(error, file=sys.stderr)
        os._exit(1)
    with stream:
        opened.release()
        while stream.read(65536):
            pass
opened = threading.Semaphore(0)
count, *paths = sys.argv[1:]
for number in range(int(count)):
    threading.Thread(target=read, args=[paths[number % len(paths)]], daemon=True).start()
for _ in range(int(count)):
    opened.acquire()
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def tmpfs(where: Path) -> Iterator[Path]:
    """A small tmpfs on the new directory ``where``."""
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "none", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


@contextlib.contextmanager
def crowd(where: Path, memory: Path, ended: int, running: int) -> Iterator[tuple[Ktaskfs, list[float]]]:
    """A mount with so many tasks, and how long (s) each of the ended ones took, from its write to its end."""
    with Ktaskfs(where / "mnt", where / "state") as mount:
        for tunable, value in (("keep_finished", 2 * ended), ("max_tasks", 2 * running)):
            (mount.path / f"debug/ktask_{tunable}").write_text(str(value))
        target = memory / "small"
        target.write_bytes(bytes(4096))
        durations = []
        for number in range(ended):
            start = time.perf_counter()
            mount.submit(f"clear path={target} name=ended-{number}")
            mount.wait(f"ended-{number}")
            durations.append(time.perf_counter() - start)
        slow = memory / "slow"
        with slow.open("wb") as file:
            file.truncate(1 << 40)
        for number in range(running):
            mount.submit(f"clear path={slow} name=running-{number} {SLOW}")
        try:
            yield mount, durations
        finally:
            mount.submit("cancel")
            for number in range(running):
                mount.read(f"tasks/running-{number}/wait")


def read_all(mount: Ktaskfs, task: str) -> None:
    """Every file of one task, one after the other."""
    directory = mount.path / "tasks" / task
    for name in os.listdir(directory):
        if name != "wait":
            (directory / name).read_bytes()


def listing(mount: Ktaskfs) -> float:
    return seconds(lambda: subprocess.run(["ls", mount.path / "tasks"], stdout=subprocess.DEVNULL, check=True))


def many_tasks(where: Path, memory: Path, settings: Settings) -> list[Section]:
    few, many, running = (3, 30, 2) if settings.smoke else (10, 10_000, 64)
    with ExitStack() as stack:
        for name in ("few", "many"):
            (where / name).mkdir()
        small, _ = stack.enter_context(crowd(where / "few", memory, few, 1))
        large, durations = stack.enter_context(crowd(where / "many", memory, many, running))
        read = alternate(
            [
                Contender(f"{few} tasks", lambda: seconds(lambda: read_all(small, "ended-0"))),
                Contender(f"{many} ended, {running} running", lambda: seconds(lambda: read_all(large, "ended-0"))),
            ],
            10 * settings.rounds,
        )
        listed = alternate([Contender(f"ls tasks, {many + running} of them", lambda: listing(large))], settings.rounds)
        rss = Series("daemon, RSS", [float(large.processes()[0].memory_info().rss)])
    part = max(1, many // 10)
    first, last = f"tasks 1 to {part}", f"tasks {many - part + 1} to {many}"
    created = [Series(first, durations[:part]), Series(last, durations[-part:])]
    return [
        Section(
            "Reading every file of one task",
            read,
            unit="ms",
            goals=[Goal("many tasks against few", read[1].name, read[0].name, most=1.1)],
        ),
        Section("Listing", listed, goals=[Goal("ls tasks", listed[0].name, None, most=1.5)]),
        Section(
            "Creating tasks, from the write to the end of the task",
            created,
            unit="ms",
            goals=[Goal("the last tenth against the first", last, first, most=1.1)],
        ),
        Section("Memory", [rss], unit="bytes", goals=[Goal("daemon", rss.name, None, most=200 * MIB)]),
    ]


@contextlib.contextmanager
def readers(mount: Ktaskfs, count: int) -> Iterator[None]:
    """So many threads of another process read streams, half of them ``events``."""
    paths = [str(mount.path / name) for name in ("events", "tasks/running-0/wait")]
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(count), *paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("the readers could not be started")
        yield
        process.communicate()


def many_readers(where: Path, memory: Path, settings: Settings) -> list[Section]:
    count = 20 if settings.smoke else READERS
    rounds = 5 if settings.smoke else 1000
    with crowd(where, memory, 1, 1) as (mount, _):
        daemon = mount.processes()[0]

        def status() -> float:
            return seconds(lambda: mount.read("tasks/ended-0/status"))

        def measured(name: str) -> tuple[Series, Series]:
            before, start = sum(daemon.cpu_times()[:2]), time.perf_counter()
            values = alternate([Contender(name, status)], rounds)[0]
            time.sleep(0 if settings.smoke else 5)  # a stretch in which only the streams work
            used = (sum(daemon.cpu_times()[:2]) - before) / (time.perf_counter() - start)
            return values, Series(name, [used])

        alone, alone_cpu = measured("nobody else")
        with readers(mount, count):
            crowded, crowded_cpu = measured(f"{count} readers of wait and events")
            size = Series("daemon, RSS", [float(daemon.memory_info().rss)])
    return [
        Section(
            "Reading a status",
            [alone, crowded],
            unit="us",
            goals=[Goal("with readers against without", crowded.name, alone.name, most=1.1)],
            note="Five hundred readers need as many answers a second, and the daemon has one thread for all requests.",
        ),
        Section("Share of one CPU that the daemon takes meanwhile (s each s)", [alone_cpu, crowded_cpu]),
        Section(f"Memory with {count} readers", [size], unit="bytes"),
    ]


def measure(settings: Settings) -> list[Section]:
    with directory() as where, tmpfs(where / "memory") as memory:
        (where / "readers").mkdir()
        return [*many_readers(where / "readers", memory, settings), *many_tasks(where, memory, settings)]


if __name__ == "__main__":
    main("interface", "The interface under load", measure)
