"""The main job: allocating and clearing a file of huge pages, and the cost of the mount itself.

Usage: python -m bench.main_job [--smoke] [--rounds N] [--size BYTES] (as root: it reserves huge pages)
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import os
import re
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Literal

from bench.harness import Contender, Goal, Section, Series, Settings, alternate, main, seconds
from bench.mounts import Ktaskfs, MinimalFs, directory, hugetlbfs
from bench.peers import build, inner_seconds
from bench.pool import reserved
from ktaskfs import ktask
from ktaskfs.host.mapping import Mapping
from ktaskfs.operations.ranges.fallocate import MAX_CHUNK, MIN_CHUNK
from ktaskfs.units import format_size, human_size

PAGE: Final = 2 << 20
PEER_CHUNK: Final = 64 << 20
THREADS: Final = 2
FIXED: Final = (1, 2, 4)
FOUND: Final = "ktaskfs, found"
COUNTED: Final = (
    "ktaskfs: from the write of the spec until `wait` ends. The C programs: from the open until the last join."
)
WHY_ALLOCATING: Final = (
    "More than nine tenths of the time of C are the kernel's zeroing of pages (perf), and two threads of C are "
    "1.4 to 1.7 times as fast as fallocate(1) (three EPYCs; the least on the fastest, where one thread already has 22 "
    "GiB/s). There ktaskfs took 11 ms longer than C, some 6 to 8 of them for the start and the end of the task."
)
WHY_START: Final = (
    "Each write comes right after another task, before the next worker has been forked in advance. With such a "
    "worker, the write takes about half as long (`bench.starts`)."
)
_numbers = itertools.count()


def job(mount: Ktaskfs, operation: str, path: Path, rest: str = "") -> float:
    """From the write of the spec until ``wait`` has ended, as a person would count it."""
    name = f"bench{next(_numbers)}"
    spec = f"{operation} path={path} name={name} {rest}"
    start = time.perf_counter()
    mount.submit(spec)
    mount.wait(name)
    return time.perf_counter() - start


def allocating(mount: Ktaskfs, huge: Path, settings: Settings) -> Section:
    target = huge / "target"
    populate = build("populate")

    def afresh() -> None:
        target.unlink(missing_ok=True)

    series = alternate(
        [
            Contender("ktaskfs", lambda: job(mount, "fallocate", target, f"length={settings.size}"), afresh),
            Contender(
                "fallocate(1)",
                lambda: seconds(lambda: subprocess.run(["fallocate", "-l", str(settings.size), target], check=True)),
                afresh,
            ),
            Contender(
                "C, MADV_POPULATE_WRITE, 2 threads",
                lambda: inner_seconds(populate, target, settings.size, THREADS, PEER_CHUNK),
                afresh,
            ),
            Contender(
                "C, MADV_POPULATE_WRITE, 1 thread",
                lambda: inner_seconds(populate, target, settings.size, 1, PEER_CHUNK),
                afresh,
            ),
        ],
        settings.rounds,
        calm=not settings.smoke,
    )
    target.unlink()
    goals = [
        Goal("speed against fallocate(1)", "fallocate(1)", "ktaskfs", least=1.6),
        Goal("speed against the same in C", "C, MADV_POPULATE_WRITE, 2 threads", "ktaskfs", least=0.93),
    ]
    title = f"`fallocate`, {human_size(settings.size)} of 2 MiB pages, {THREADS} threads"
    note = f"{COUNTED} {WHY_ALLOCATING}"
    return Section(title, series, work=settings.size, goals=goals, note=note)


def searching(huge: Path, settings: Settings) -> Section:
    """The chunks of ``fallocate``, by the framework in this process: the number of threads found, and fixed."""
    target = huge / "target"

    def afresh() -> None:
        target.unlink(missing_ok=True)

    def populate(threads: Literal["found", "fixed"], most: int) -> float:
        with target.open("w+b") as file, ExitStack() as stack:
            file.truncate(settings.size)
            mapping = stack.enter_context(Mapping(file.fileno(), 0, settings.size, reserve=True))
            control = ktask.Control(
                lambda start, end: mapping.populate_write(start, end - start),
                min_chunk_size=MIN_CHUNK,
                max_chunk_size=MAX_CHUNK,
                align=PAGE,
                threads=threads,
                max_threads=most,
            )
            return seconds(lambda: ktask.run(0, settings.size, control))

    fixed = {f"ktaskfs, at most {most} fixed": most for most in FIXED}
    contenders = [Contender(FOUND, lambda: populate("found", 0), afresh)]
    contenders += [Contender(name, functools.partial(populate, "fixed", most), afresh) for name, most in fixed.items()]
    series = alternate(contenders, settings.rounds, calm=not settings.smoke)
    target.unlink()
    goals = [Goal(f"speed against {name}", name, FOUND, least=0.98) for name in fixed]
    title = f"The number of threads found and fixed, {human_size(settings.size)} of 2 MiB pages"
    note = "`Control(threads=…)` of the framework, without a mount. There are never more threads than CPUs."
    return Section(title, series, work=settings.size, goals=goals, note=note)


def clearing(mount: Ktaskfs, huge: Path, settings: Settings) -> Section:
    target = huge / "target"
    memset, zero = build("memset"), build("zero")
    device = f"C, read(2) from /dev/zero, {THREADS} threads"
    subprocess.run(["fallocate", "-l", str(settings.size), target], check=True)
    series = alternate(
        [
            Contender("ktaskfs", lambda: job(mount, "clear", target)),
            Contender(
                "C, memset, 2 threads", lambda: inner_seconds(memset, target, settings.size, THREADS, PEER_CHUNK)
            ),
            Contender("C, memset, 1 thread", lambda: inner_seconds(memset, target, settings.size, 1, PEER_CHUNK)),
            Contender(device, lambda: inner_seconds(zero, target, settings.size, THREADS, PEER_CHUNK)),
        ],
        settings.rounds,
        calm=not settings.smoke,
    )
    target.unlink()
    goals = [
        Goal("speed against memset in C", "C, memset, 2 threads", "ktaskfs", least=0.9),
        Goal("speed against read(2) from /dev/zero in C", device, "ktaskfs"),
    ]
    title = f"`clear`, {human_size(settings.size)} of 2 MiB pages, {THREADS} threads"
    note = (
        "memset dies of SIGBUS if somebody truncates the file meanwhile, so children of the worker (hands) call it. "
        "The kernel does what they cannot do: it copies zeros from the hole of a huge-page file. "
        "Most of what ktaskfs takes beyond memset is the start and the end of the task (see below)."
    )
    return Section(title, series, work=settings.size, goals=goals, note=note)


def starting(mount: Ktaskfs, huge: Path, settings: Settings) -> Section:
    """The write that starts a small task, and the target's own part in it: open, size, reserve."""
    target = huge / "target"

    def afresh() -> None:
        target.unlink(missing_ok=True)

    def start() -> float:
        name = f"bench{next(_numbers)}"
        taken = seconds(lambda: mount.submit(f"fallocate path={target} length={PAGE} name={name}"))
        mount.wait(name)
        return taken

    def reserve() -> None:
        fd = os.open(target, os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, PAGE)
        mmap.mmap(fd, PAGE).close()
        os.close(fd)

    series = alternate(
        [
            Contender("the write that starts a task", start, afresh),
            Contender("the target's own reservation", lambda: seconds(reserve), afresh),
            Contender("start to done, one page", lambda: job(mount, "fallocate", target, f"length={PAGE}"), afresh),
        ],
        settings.rounds if settings.smoke else 50,
        warmups=2,
    )
    target.unlink()
    write, own, _ = series
    beyond = Series("beyond the reservation", [a - b for a, b in zip(write.values, own.values, strict=True)])
    goals = [Goal("the write, beyond the target's own reservation", beyond.name, None, most=0.005)]
    return Section("Starting a task", [*series, beyond], unit="ms", goals=goals, note=WHY_START)


def read_as_cat(path: Path) -> None:
    """The system calls of cat(1): open, fstat, read to the end, close."""
    fd = os.open(path, os.O_RDONLY)
    os.fstat(fd)
    while os.read(fd, 131072):
        pass
    os.close(fd)


def reading(mount: Ktaskfs, minimal: MinimalFs, task: str, settings: Settings) -> list[Section]:
    ours, theirs = mount.path / "tasks" / task / "status", minimal.path / "status"

    def cat(path: Path) -> float:
        return seconds(lambda: subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True))

    calls = alternate(
        [
            Contender("ktaskfs, tasks/NAME/status", lambda: seconds(lambda: read_as_cat(ours))),
            Contender("minimal pyfuse3 filesystem", lambda: seconds(lambda: read_as_cat(theirs))),
        ],
        20 if settings.smoke else 1000,
        warmups=10,
    )
    whole = alternate(
        [
            Contender("ktaskfs, tasks/NAME/status", lambda: cat(ours)),
            Contender("minimal pyfuse3 filesystem", lambda: cat(theirs)),
        ],
        5 if settings.smoke else 200,
        warmups=3,
    )
    goal = Goal("time against the minimal filesystem", calls[0].name, calls[1].name, most=1.3)
    return [
        Section(
            "Reading `status`: open, fstat, read to the end, close",
            calls,
            unit="us",
            goals=[Goal(goal.text, goal.left, goal.right)],
            note=(
                "Without the time of a process. Seven requests against five (where `tasks` leads this user, whether "
                "the task still exists, how long its text is) and some 25 µs for the text make the difference, but "
                "most of all the CPU of the daemon: `bench.reads` has figures for the reader's CPU and for another one."
            ),
        ),
        Section("`cat status`, the whole process", whole, unit="us", goals=[goal]),
    ]


def mounting(settings: Settings) -> Section:
    def ktaskfs() -> float:
        with directory() as where, Ktaskfs(where / "mnt", where / "state") as mount:
            return mount.ready_seconds

    def minimal() -> float:
        with directory() as where, MinimalFs(where / "mnt", 1000) as mount:
            return mount.ready_seconds

    contenders = [Contender("ktaskfs", ktaskfs), Contender("minimal pyfuse3 filesystem", minimal)]
    series = alternate(contenders, settings.rounds, calm=not settings.smoke)
    goals = [Goal("mount ready", "ktaskfs", None, most=0.7)]
    return Section("From the command until the first file has been read", series, unit="ms", goals=goals)


def memory(mount: Ktaskfs, huge: Path, settings: Settings) -> Section:
    """The memory of the processes themselves; pages of the target do not count in RSS."""
    target = huge / "target"
    idle = mount.processes()
    daemon = "daemon, RSS idle"
    series = [Series(daemon, [float(idle[0].memory_info().rss)])]
    series += [Series("its spawner, RSS idle", [float(process.memory_info().rss)]) for process in idle[1:]]
    sizes = [size for size in (64 << 20, 512 << 20, 1 << 30, 4 << 30) if size <= settings.size] or [settings.size]
    goals = [Goal("the daemon idle", daemon, None, most=60 << 20)]
    jobs = [("fallocate", size) for size in sizes] + [("clear", 1 << 40)]  # of the last chunk almost nothing is left
    for operation, size in jobs:
        name = f"worker, own memory, {operation} of {format_size(size)}"
        largest = [worker_memory(mount, target, operation, size) for _ in range(settings.rounds)]
        series.append(Series(name, [float(value) for value in largest]))
        goals.append(Goal(f"a worker at {format_size(size)}", name, None, most=25 << 20))
    note = "A worker's own memory: the maximum of its private memory (smaps_rollup)."
    return Section("Memory", series, unit="bytes", goals=goals, note=note)


def private_memory(pid: int) -> int:
    """The memory that the process shares with no other, without its huge pages (psutil's USS counts those)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.findall(r"^Private_(?:Clean|Dirty): *(\d+) kB", rollup, re.MULTILINE)
    return sum(map(int, found)) << 10


def worker_memory(mount: Ktaskfs, target: Path, operation: str, size: int) -> int:
    """The greatest private memory of the worker, looked at as often as possible while it works."""
    target.unlink(missing_ok=True)
    with target.open("w") as file:
        file.truncate(size)
    name = f"bench{next(_numbers)}"
    mount.submit(f"{operation} path={target} name={name}")
    pid = int(dict(line.split() for line in mount.read(f"tasks/{name}/stat").splitlines())["pid"])
    most = 0
    with contextlib.suppress(OSError):  # it has ended
        while pid:
            most = max(most, private_memory(pid))
    mount.wait(name)
    target.unlink()
    return most


def timed(mount: Ktaskfs, huge: Path, settings: Settings) -> list[Section]:
    """Both operations beside C, with THREADS threads, and the start of a task."""
    (mount.path / "debug/ktask_max_threads").write_text(str(THREADS))
    return [allocating(mount, huge, settings), clearing(mount, huge, settings), starting(mount, huge, settings)]


def times(settings: Settings) -> list[Section]:
    """The same on a mount of its own, for other benchmarks."""
    with ExitStack() as stack:
        where = stack.enter_context(directory())
        stack.enter_context(reserved(PAGE, settings.size))
        huge = stack.enter_context(hugetlbfs(where / "huge", PAGE))
        return timed(stack.enter_context(Ktaskfs(where / "mnt", where / "state")), huge, settings)


def measure(settings: Settings) -> list[Section]:
    with ExitStack() as stack:
        where = stack.enter_context(directory())
        stack.enter_context(reserved(PAGE, settings.size))
        huge = stack.enter_context(hugetlbfs(where / "huge", PAGE))
        mount = stack.enter_context(Ktaskfs(where / "mnt", where / "state"))
        memory_table = memory(mount, huge, settings)
        sections = timed(mount, huge, settings)
        numbers = searching(huge, settings)
        mount.submit(f"fallocate path={huge / 'shown'} length={PAGE} name=shown")
        mount.wait("shown")
        status = mount.read("tasks/shown/status")
        minimal = stack.enter_context(MinimalFs(where / "minimal", len(status.encode())))
        sections += reading(mount, minimal, "shown", settings)
        return [*sections, mounting(settings), memory_table, numbers]


if __name__ == "__main__":
    main("main_job", "The main job", measure)
