"""The interface's single calls beside what else serves such files, on an idle machine and on a busy one.

Usage: python -m bench.calls [--smoke] [--rounds N] [--size BYTES] (as root; bytes that a busy task clears)
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from bench.harness import Goal, Section, Series, Settings, main, seconds
from bench.interface import tmpfs
from bench.mounts import DEADLINE, Ktaskfs, MinimalFs, MinimalFsInC, cgroup2, directory, hugetlbfs
from bench.peers import available
from bench.pool import reserved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PAGE: Final = 2 << 20
TASKS: Final = 10
BUSY: Final = (0, 1, 2)
BURST: Final = 20
RUN: Final = 10
MINIMAL: Final = "minimal filesystem, pyfuse3"
MINIMAL_C: Final = "minimal filesystem, C"
CGROUP: Final = "cgroup v2, `cgroup.stat`"
CLEARER: Final = """
import os, select, sys
mount, path, name = sys.argv[1:]
control = os.open(f"{mount}/tasks/control", os.O_WRONLY)
while not select.select([sys.stdin], [], [], 0)[0]:
    os.pwrite(control, f"clear path={path} max_threads=1 name={name}".encode(), 0)
    print("at work", flush=True)
    with open(f"{mount}/tasks/{name}/wait") as wait:
        wait.read()
    os.rmdir(f"{mount}/tasks/{name}")
"""
"""Clears a file over and over with one thread, until its standard input is closed."""


@dataclass(frozen=True)
class Call:
    """Something short that is done many times; ``before`` and ``after`` are not timed."""

    name: str
    action: Callable[[], object]
    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Kind:
    """Calls that are compared with each other; so many of each make up one round of figures.

    ``run`` of them follow each other before it is another's turn.
    """

    title: str
    calls: list[Call]
    count: int
    run: int = 1
    unit: str = "us"
    rare: bool = True
    """Whether there are enough of them to say something of the slowest in a hundred."""
    goals: list[Goal] = field(default_factory=list)
    note: str = ""


def measured(kind: Kind, rounds: int, busy: int) -> list[Section]:
    """The median and the 99th percentile of each round, of calls in turns, ``kind.run`` at a time.

    One percentile of each round, so that their quartiles show the spread.
    """
    order = random.Random(2017)  # in a fixed order, each would always follow the same other one
    percentiles: dict[str, list[list[float]]] = {call.name: [] for call in kind.calls}
    for number in range(rounds + 1):
        taken: dict[str, list[float]] = {call.name: [] for call in kind.calls}
        for _ in range(kind.count // kind.run):
            for call in order.sample(kind.calls, len(kind.calls)):
                # A FUSE filesystem gets the request for a close(2) after it, in the time of the next call.
                if kind.run > 1:
                    call.action()
                for _ in range(kind.run):
                    call.before()
                    taken[call.name].append(seconds(call.action))
                    call.after()
        if number:  # the first is the warm-up
            for name, values in taken.items():
                percentiles[name].append(statistics.quantiles(values, n=100, method="inclusive"))

    def section(what: str, percentile: int, goals: list[Goal], note: str) -> Section:
        series = [Series(name, [each[percentile - 1] for each in found]) for name, found in percentiles.items()]
        title = f"{kind.title}, {busy or 'no'} busy task{'s' * (busy != 1)}: {what} of {kind.count}"
        return Section(title, series, unit=kind.unit, goals=goals, note=note)

    half = section("median", 50, [] if busy else kind.goals, "" if busy else kind.note)
    return [half, section("99th percentile", 99, [], "")] if kind.rare else [half]


def open_read_close(path: Path) -> None:
    """A program that knows how short the file is."""
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 65536)
    os.close(fd)


def reading(files: dict[str, Path], count: int) -> Kind:
    calls = [Call(name, functools.partial(open_read_close, path)) for name, path in files.items()]
    names = [name for name in files if name.startswith("ktaskfs")]
    peers = [name for name in (MINIMAL, MINIMAL_C) if name in files]
    goals = [Goal(f"{name} against the {peer}", name, peer) for name in names for peer in peers]
    note = (
        "A read takes seven requests instead of three: each time the kernel asks where `tasks` leads this user, "
        "whether the task still exists, and how long the file is, and it reports the close(2). It keeps the answers "
        "of the minimal filesystems. Much depends on the CPU of the filesystem's process, because waking another CPU "
        "takes longer than a request: `bench.reads` measures both cases."
    )
    missing = [what for what, there in ((MINIMAL_C, MINIMAL_C in files), ("cgroup v2", CGROUP in files)) if not there]
    note += f" Not available here: {', '.join(missing)}." if missing else ""
    return Kind("Open, read, close", calls, count, RUN, goals=goals, note=note)


def listing(directories: dict[str, Path], count: int) -> Kind:
    calls = []
    for name, path in directories.items():
        entries = len(os.listdir(path))
        calls.append(Call(f"{name}, {entries} names", functools.partial(os.listdir, path)))
    return Kind("Listing a directory (opendir, readdir, closedir)", calls, count, RUN)


def ls(directories: dict[str, Path], count: int) -> Kind:
    """The program, as a person would run it."""

    def run(path: Path) -> None:
        subprocess.run(["ls", path], stdout=subprocess.DEVNULL, check=True)

    calls = [Call(name, functools.partial(run, path)) for name, path in directories.items()]
    return Kind("`ls`, the whole process", calls, count)


class Starter:
    """Starts tasks that have one page to clear, waits for their end, and forgets them."""

    def __init__(self, mount: Ktaskfs, target: Path) -> None:
        self._mount = mount
        self._target = target
        self._numbers = itertools.count()
        self._names: list[str] = []
        self._spawner = mount.processes()[1]

    def _spec(self) -> str:
        self._names.append(f"short{next(self._numbers)}")
        return f"clear path={self._target} name={self._names[-1]}"

    def spare(self) -> None:
        """Wait until a worker has been forked ahead and sleeps."""
        end = time.monotonic() + DEADLINE
        while not any(map(_is_spare, self._spawner.children())):
            if time.monotonic() > end:
                raise RuntimeError("no worker is forked in advance")

    def spent(self) -> None:
        """Use the worker that was forked ahead, which leaves none for the next."""
        self.spare()
        self.start(1)

    def start(self, count: int) -> None:
        """So many tasks, one write after the other."""
        for _ in range(count):
            self._mount.submit(self._spec())

    def start_together(self, count: int) -> None:
        """So many tasks with one write."""
        self._mount.submit("\n".join(self._spec() for _ in range(count)))

    def wait(self) -> None:
        """Until those that were started last are done."""
        for name in self._names:
            self._mount.wait(name)

    def job(self) -> None:
        """One task, from start to done."""
        self.start(1)
        self._mount.wait(self._names[-1])

    def burst(self, start: Callable[[int], None], count: int) -> None:
        """So many tasks, from the first write until the last is done."""
        start(count)
        self.wait()

    def forget(self) -> None:
        """Wait for the started tasks, and remove them from the mount."""
        self.wait()
        for name in self._names:
            (self._mount.path / "tasks" / name).rmdir()
        self._names.clear()


def _is_spare(process: psutil.Process) -> bool:
    try:
        title = " ".join(process.cmdline())
        return title.startswith("ktaskfs: spare") and process.status() == psutil.STATUS_SLEEPING
    except psutil.NoSuchProcess:
        return False


def starting(starter: Starter, target: Path, count: int, burst: int, *, busy: bool) -> list[Kind]:
    """One task at a time, ``target`` being for the peer; and ``burst`` of them at a time.

    ``busy``: other tasks begin so often that no worker is forked in advance.
    """
    spare = (lambda: None) if busy else starter.spare

    def program() -> None:
        subprocess.run(["fallocate", "-l", "4096", target], check=True)

    peer = Call("fallocate(1), a process that does as much", program, lambda: target.unlink(missing_ok=True))
    if busy:
        one = [Call("no worker forked ahead", starter.job, after=starter.forget), peer]
    else:
        ahead = Call("a worker forked ahead", starter.job, starter.spare, starter.forget)
        one = [ahead, Call("right after another start", starter.job, starter.spent, starter.forget), peer]
    ways = {f"{burst} writes": starter.start, f"{burst} lines in one write": starter.start_together}
    many = [
        Call(name, functools.partial(starter.burst, start, burst), spare, starter.forget)
        for name, start in ways.items()
    ]
    return [
        Kind("A task of one page, from start to done", one, count, unit="ms"),
        Kind(
            f"{BURST} tasks of one page, from the first write to the last end",
            many,
            max(2, count // 20),
            unit="ms",
            rare=False,
        ),
    ]


@contextlib.contextmanager
def busy_with(mount: Ktaskfs, targets: Sequence[Path]) -> Iterator[None]:
    """Meanwhile a task with one thread clears each file again and again."""
    with ExitStack() as stack:
        clearers = []
        for number, target in enumerate(targets):
            command = [sys.executable, "-c", CLEARER, str(mount.path), str(target), f"busy{number}"]
            clearer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            clearers.append(stack.enter_context(clearer))
            assert clearer.stdout is not None
            clearer.stdout.readline()
        yield
        for clearer in clearers:
            clearer.communicate()
            if clearer.returncode:
                raise RuntimeError("a busy task could not be kept up")


@dataclass(frozen=True)
class Places:
    """The files and directories to read and list, by name, those of ktaskfs first."""

    files: dict[str, Path]
    directories: dict[str, Path]


def places(stack: ExitStack, where: Path, mount: Ktaskfs) -> Places:
    """A task of ``mount``, and beside it what can be had on this machine, for as long as ``stack`` holds it."""
    task, process = mount.path / "tasks/ended-0", Path(f"/proc/{os.getpid()}")
    size = len((task / "status").read_bytes())
    minimal = stack.enter_context(MinimalFs(where / "minimal", size))
    files = {f"ktaskfs, `{name}`": task / name for name in ("state", "status", "progress")}
    files[MINIMAL] = minimal.path / "status"
    directories = {"ktaskfs, `tasks/NAME`": task, "ktaskfs, `tasks`": mount.path / "tasks"}
    if available("fuse3"):
        in_c = stack.enter_context(MinimalFsInC(where / "minimal-c", size, len(os.listdir(task))))
        files[MINIMAL_C], directories[MINIMAL_C] = in_c.path / "status", in_c.path
    files["procfs, `status`"], directories["procfs, a process"] = process / "status", process
    group = stack.enter_context(cgroup2(where / "cgroup"))
    if group is not None:
        files[CGROUP], directories["cgroup v2, a group"] = group / "cgroup.stat", group
    return Places(files, directories)


def measure(settings: Settings) -> list[Section]:
    calls, starts, runs, burst = (10, 2, 2, 3) if settings.smoke else (500, 100, 100, BURST)
    sections = []
    with ExitStack() as stack:
        where = stack.enter_context(directory())
        memory = stack.enter_context(tmpfs(where / "memory"))
        stack.enter_context(reserved(PAGE, max(BUSY) * settings.size))
        huge = stack.enter_context(hugetlbfs(where / "huge", PAGE))
        mount = stack.enter_context(Ktaskfs(where / "mnt", where / "state"))
        small = memory / "small"
        small.write_bytes(bytes(4096))
        for number in range(TASKS):
            mount.submit(f"clear path={small} name=ended-{number}")
            mount.wait(f"ended-{number}")
        targets = [huge / f"busy{number}" for number in range(max(BUSY))]
        for target in targets:
            subprocess.run(["fallocate", "-l", str(settings.size), target], check=True)
        there = places(stack, where, mount)
        kinds = [reading(there.files, calls), listing(there.directories, calls), ls(there.directories, runs)]
        starter = Starter(mount, small)
        for busy in BUSY[:2] if settings.smoke else BUSY:
            with busy_with(mount, targets[:busy]):
                for kind in [*kinds, *starting(starter, memory / "other", starts, burst, busy=busy > 0)]:
                    sections += measured(kind, settings.rounds, busy)
    return sections


if __name__ == "__main__":
    main("calls", "Single calls of the interface", measure, size="2G")
