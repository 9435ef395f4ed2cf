"""Memory and CPU time of the processes, by size of job and by number of tasks.

Usage: python -m bench.footprint [--smoke] [--rounds N] [--size BYTES] (as root; the largest job for which there are
pages)
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from bench.harness import Contender, Goal, Section, Series, Settings, alternate, main
from bench.interface import SLOW, tmpfs
from bench.mounts import DEADLINE, Ktaskfs, directory, hugetlbfs
from bench.peers import build
from bench.pool import reserved
from ktaskfs.units import human_size

if TYPE_CHECKING:
    from collections.abc import Iterable

PAGE: Final = 2 << 20
MIB: Final = 1 << 20
SIZES: Final = (64 * MIB, 256 * MIB, 1024 * MIB, 4096 * MIB)
SPARSE: Final = 1 << 40
PEER_CHUNK: Final = 64 * MIB
THREADS: Final = 2
OWN: Final = "ktaskfs: "
SPARE: Final = OWN + "spare worker"
ENDED: Final = (0, 10, 100, 1000)
RUNNING: Final = (0, 1, 16, 64)
JOBS_MAX: Final = 64
_numbers = itertools.count()


@dataclass(frozen=True)
class Memory:
    """Bytes of one process or of several, without huge pages (smaps_rollup)."""

    rss: int = 0
    pss: int = 0
    private: int = 0

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.rss + other.rss, self.pss + other.pss, self.private + other.private)

    @classmethod
    def of(cls, pid: int) -> Memory:
        """Of the process now; raises OSError when it has ended."""
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = {key: int(value) << 10 for key, value in re.findall(r"^(\w+): *(\d+) kB", text, re.MULTILINE)}
        if not found:  # it is ending
            raise ProcessLookupError(pid)
        return cls(found["Rss"], found["Pss"], found["Private_Clean"] + found["Private_Dirty"])


class Family:
    """The processes of a mount: daemon, spawner, the worker that is forked ahead, the workers at work."""

    def __init__(self, mount: Ktaskfs) -> None:
        self.daemon, self.spawner = mount.processes()[:2]

    def workers(self) -> list[psutil.Process]:
        """The workers of tasks, and ended ones that were not reaped yet, which have no title."""
        return [each for each in self.spawner.children() if not _title(each).startswith(OWN)]

    def _spares(self) -> list[psutil.Process]:
        return [each for each in self.spawner.children() if _title(each) == SPARE]

    def settle(self, working: int) -> None:
        """Wait until exactly so many workers exist, and one is forked ahead."""
        end = time.monotonic() + DEADLINE
        while len(self.workers()) != working or not self._spares():
            if time.monotonic() > end:
                raise RuntimeError(f"{len(self.workers())} workers are there, and not {working}")
            time.sleep(0.001)

    def cpu(self) -> tuple[float, float, float]:
        """CPU seconds until now: of the daemon, of the spawner, of all the workers that it has reaped."""
        daemon, spawner = self.daemon.cpu_times(), self.spawner.cpu_times()
        reaped = spawner.children_user + spawner.children_system
        return daemon.user + daemon.system, spawner.user + spawner.system, reaped


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline()).rstrip()
    return ""


def afresh(target: Path, size: int = 0) -> None:
    """An empty file of that length, without pages."""
    target.unlink(missing_ok=True)
    with target.open("wb") as file:
        file.truncate(size)


def greatest(mount: Ktaskfs, target: Path, operation: str, size: int) -> Memory:
    """The most that the worker was seen with, looked at as often as possible while it works."""
    while True:
        afresh(target, size)
        name = f"bench{next(_numbers)}"
        mount.submit(f"{operation} path={target} name={name}")
        pid = int(dict(line.split() for line in mount.read(f"tasks/{name}/stat").splitlines())["pid"])
        seen = []
        with contextlib.suppress(OSError):  # it has ended
            while pid:
                seen.append(Memory.of(pid))
        mount.wait(name)
        target.unlink()
        if seen:  # else it was too quick
            return Memory(
                max(each.rss for each in seen), max(each.pss for each in seen), max(each.private for each in seen)
            )


def rows(name: str, found: Iterable[Memory]) -> list[Series]:
    """The three figures of something that was looked at several times."""
    seen = list(found)
    return [
        Series(f"{name}, RSS", [float(each.rss) for each in seen]),
        Series(f"{name}, PSS", [float(each.pss) for each in seen]),
        Series(f"{name}, private", [float(each.private) for each in seen]),
    ]


def by_size(mount: Ktaskfs, huge: Path, settings: Settings) -> Section:
    """A worker's memory does not depend on how much it works on."""
    jobs = [("fallocate", size) for size in sizes(settings)] + [("clear", SPARSE)]
    series, goals = [], []
    for operation, size in jobs:
        name = f"{operation}, {human_size(size)}{', sparse' * (size == SPARSE)}"
        series += rows(name, [greatest(mount, huge / "target", operation, size) for _ in range(settings.rounds)])
        goals.append(Goal(f"{name}, private", f"{name}, private", None, most=25 * MIB))
    note = "The maximum of a worker during its work, without its huge pages."
    return Section("Memory of a worker, by size of the job", series, unit="bytes", goals=goals, note=note)


def sizes(settings: Settings) -> list[int]:
    return [size for size in SIZES if size <= settings.size] or [settings.size]


def by_tasks(mount: Ktaskfs, memory: Path, settings: Settings) -> list[Section]:
    """Memory with an increasing number of tasks in the table, and the processes' use for each task that starts and
    ends."""
    ended, running, batch = ((0, 3), (0, 2), 3) if settings.smoke else (ENDED, RUNNING, 50)
    for tunable, value in (("keep_finished", 2 * ended[-1]), ("max_tasks", 2 * running[-1])):
        (mount.path / f"debug/ktask_{tunable}").write_text(str(value))
    family = Family(mount)
    small, slow = memory / "small", memory / "slow"
    small.write_bytes(bytes(4096))
    afresh(slow, SPARSE)
    daemon, spawner, worker, idle = [], [], [], []
    spent: list[tuple[float, ...]] = []
    there = 0

    def look(name: str) -> None:
        daemon.extend(rows(name, [Memory.of(family.daemon.pid)]))
        spawner.extend(rows(name, [Memory.of(family.spawner.pid)]))

    for count in ended:
        while there < count:
            part = min(batch, count - there)
            before = family.cpu()
            for number in range(there, there + part):
                mount.submit(f"clear path={small} name=ended-{number}")
                mount.wait(f"ended-{number}")
            there += part
            family.settle(0)
            if part == batch:
                spent.append(tuple((now - then) / part for now, then in zip(family.cpu(), before, strict=True)))
        look(f"{count} ended")
    there = 0
    for count in running:
        for number in range(there, count):
            mount.submit(f"clear path={slow} name=running-{number} {SLOW}")
        there = count
        family.settle(count)
        if count:
            look(f"{ended[-1]} ended, {count} running")
            worker += rows(f"each of {count}", [Memory.of(process.pid) for process in family.workers()])
        idle.append(Series(f"{count} running", [share(family, settings)]))
    mount.submit("cancel")
    family.settle(0)
    costs = [
        Series(name, list(each))
        for name, each in zip(("daemon", "spawner", "worker"), zip(*spent, strict=True), strict=True)
    ]
    of_all = Series("all three", [sum(each) for each in spent])
    large = f"{ended[-1]} ended, {running[-1]} running, RSS"
    return [
        Section("Memory of the daemon", daemon, unit="bytes", goals=[Goal(large, large, None, most=200 * MIB)]),
        Section("Memory of the spawner", spawner, unit="bytes"),
        Section("Memory of workers, by their number", worker, unit="bytes", note="Over all workers."),
        Section(
            f"CPU time for a task of one page, over {batch} of them",
            [*costs, of_all],
            unit="ms",
            note="From the write until the worker was reaped and the next one was forked ahead. The kernel reports "
            f"the time of all {batch} in steps of 10 ms.",
        ),
        Section("Share of a CPU that daemon and spawner take (s each s)", idle, note="The tasks do 4 KiB a second."),
    ]


def share(family: Family, settings: Settings) -> float:
    """CPU seconds per second of daemon and spawner without requests."""
    start, before = time.perf_counter(), family.cpu()
    time.sleep(0.1 if settings.smoke else 5)  # the stretch that is looked at
    after = family.cpu()
    return abs(round(after[0] + after[1] - before[0] - before[1], 2)) / (time.perf_counter() - start)


class Jobs:
    """As many jobs of one size as make up some bytes, one after the other, and the CPU seconds that they took."""

    def __init__(self, mount: Ktaskfs, target: Path, operation: str, peer: Path, size: int, count: int) -> None:
        self._mount = mount
        self._family = Family(mount)
        self._target = target
        self._operation = operation
        self._peer = peer
        self._size = size
        self._count = count
        self.user: dict[str, list[float]] = {"workers": [], "C": []}
        self.around: dict[str, list[float]] = {"daemon": [], "spawner": []}

    def _prepare(self) -> None:
        if self._operation == "fallocate":
            afresh(self._target)

    def ktaskfs(self) -> float:
        """CPU seconds of the workers."""
        self._family.settle(0)
        before, user = self._family.cpu(), self._family.spawner.cpu_times().children_user
        for _ in range(self._count):
            self._prepare()
            name = f"bench{next(_numbers)}"
            self._mount.submit(f"{self._operation} path={self._target} length={self._size} name={name}")
            self._mount.wait(name)
        self._family.settle(0)
        daemon, spawner, workers = (now - then for now, then in zip(self._family.cpu(), before, strict=True))
        self.around["daemon"].append(daemon)
        self.around["spawner"].append(spawner)
        self.user["workers"].append(self._family.spawner.cpu_times().children_user - user)
        return workers

    def in_c(self) -> float:
        """CPU seconds of the programs, their starts included."""
        whole = user = 0.0
        command = [str(self._peer), str(self._target), str(self._size), str(THREADS), str(PEER_CHUNK)]
        for _ in range(self._count):
            self._prepare()
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise RuntimeError(f"{command} failed")
            whole += usage.ru_utime + usage.ru_stime
            user += usage.ru_utime
        self.user["C"].append(user)
        return whole


def working(mount: Ktaskfs, huge: Path, settings: Settings, operation: str, size: int) -> Section:
    """The CPU time of the work, beside a program that does nothing else."""
    peer = {"fallocate": "populate", "clear": "memset"}[operation]
    count = min(JOBS_MAX, max(1, settings.size // size))
    target = huge / "target"
    jobs = Jobs(mount, target, operation, build(peer), size, count)
    if operation == "clear":
        subprocess.run(["fallocate", "-l", str(size), target], check=True)
    workers, program = "ktaskfs, workers", f"C, {peer}"
    series = alternate([Contender(workers, jobs.ktaskfs), Contender(program, jobs.in_c)], settings.rounds)
    target.unlink()
    series.append(Series("ktaskfs, workers, user time", jobs.user["workers"][-settings.rounds :]))
    series.append(Series(f"C, {peer}, user time", jobs.user["C"][-settings.rounds :]))
    series += [Series(f"ktaskfs, {name}", found[-settings.rounds :]) for name, found in jobs.around.items()]
    title = f"CPU seconds of `{operation}`, {count} of {human_size(size)} each, {THREADS} threads"
    goals = [Goal("workers against C", workers, program)]
    return Section(title, series, goals=goals)


def measure(settings: Settings) -> list[Section]:
    with ExitStack() as stack:
        where = stack.enter_context(directory())
        memory = stack.enter_context(tmpfs(where / "memory"))
        stack.enter_context(reserved(PAGE, settings.size))
        huge = stack.enter_context(hugetlbfs(where / "huge", PAGE))
        with Ktaskfs(where / "tasks", where / "tasks-state") as mount:
            sections = by_tasks(mount, memory, settings)
        mount = stack.enter_context(Ktaskfs(where / "mnt", where / "state"))
        (mount.path / "debug/ktask_max_threads").write_text(str(THREADS))
        sections.append(by_size(mount, huge, settings))
        for operation in ("fallocate", "clear"):
            sections += [working(mount, huge, settings, operation, size) for size in sizes(settings)]
        return sections


if __name__ == "__main__":
    main("footprint", "Memory and CPU time of the processes", measure)
