"""The cost of the start of a task, from the daemon's control groups and from others: time, and CPU time of all
processes.

Usage: python -m bench.starts [--smoke] [--rounds N] (as root: it reserves 4 GiB of huge pages)
"""

from __future__ import annotations

import contextlib
import functools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from bench.calls import BURST, PAGE, Call, Kind, Starter, measured
from bench.groups import Writer, groups_beside
from bench.harness import Contender, Goal, Section, Series, Settings, alternate, main
from bench.interface import tmpfs
from bench.mounts import Ktaskfs, cgroup2, directory, hugetlbfs
from bench.peers import build, inner_seconds
from bench.pool import reserved
from ktaskfs.units import human_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import psutil

WRITE_MOST: Final = 2e-3
DONE_MOST: Final = 3e-3
BURST_MOST: Final = 40e-3
CPU_MOST: Final = 4e-3
CPU_RATIO_MOST: Final = 2.2
FILES: Final = 64
FILE_SIZE: Final = 64 << 20
PARTS: Final = ("daemon", "spawner", "worker")
WHY_START: Final = (
    "A worker is a fork of an interpreter with all modules, and copies 1,100 pages of it: 4 ms, which a spare worker "
    "spends in advance. The rest is Python in four processes: reading who the caller is, some 30 requests of the "
    "kernel, becoming the caller, opening and checking the target, the record, the page. The entry into another group "
    "of version 2 waits 12 ms for a grace period of RCU. With the mount option favordynmods it does not wait, and on "
    "Linux 6.18 then no longer until the next boot."
)
WHY_CPU: Final = (
    "perf on an EPYC: of 11 ms of a worker, 4.0 are faults of pages that it shares with the spawner, 1.3 the end of "
    "the process, 1.0 a start in a process that did one before; of 2.6 ms of the spawner, 0.7 are the fork and 1.0 "
    "faults. The worker's share includes what it does before it waits for a task."
)
WHY_BURST: Final = (
    "Each line takes 12 to 19 ms of CPU time of three processes, so the two CPUs are busy for most of the time, and "
    "workers that prepare side by side would gain little. If all lines name one file, each worker also searches "
    "/proc for other users of the file: `bench.calls` measures that."
)

WHY_FILES: Final = (
    "All processes of ktaskfs, from the write of all specs until the last worker has ended and the next one waits. C: "
    "one process with one thread. What ktaskfs adds is the start and the end of each task: 12 to 19 ms, as above."
)


class Burst:
    """Tasks that are started with one write, from their specs without names."""

    def __init__(self, mount: Ktaskfs, specs: list[str]) -> None:
        self._mount = mount
        self._lines = [f"{spec} name=burst{number}" for number, spec in enumerate(specs)]

    def start(self) -> None:
        """Returns when the write has returned."""
        self._mount.submit("\n".join(self._lines))

    def wait(self) -> None:
        """Until all are done."""
        for number in range(len(self._lines)):
            self._mount.wait(f"burst{number}")

    def job(self) -> None:
        """From the write to the last end."""
        self.start()
        self.wait()

    def forget(self) -> None:
        """Wait for the tasks, and remove them from the mount."""
        self.wait()
        for number in range(len(self._lines)):
            (self._mount.path / f"tasks/burst{number}").rmdir()


def kinds(mount: Ktaskfs, starter: Starter, small: Path, writers: dict[str, Writer], count: int) -> list[Kind]:
    """One task at a time: only the write, and until the task is done."""
    spec = f"clear path={small} name=start"

    def forget() -> None:
        mount.wait("start")
        (mount.path / "tasks/start").rmdir()

    def job(writer: Writer) -> None:
        writer.start(spec)
        mount.wait("start")

    titles: list[tuple[str, Callable[[Writer], Callable[[], object]], float]] = [
        ("The write that starts a task of one page", lambda writer: functools.partial(writer.start, spec), WRITE_MOST),
        ("A task of one page, from start to done", lambda writer: functools.partial(job, writer), DONE_MOST),
    ]
    found = []
    for title, action, most in titles:
        calls = [Call(name, action(writer), starter.spare, forget) for name, writer in writers.items()]
        goals = [Goal(name, name, None, most=most) for name in writers]
        found.append(Kind(title, calls, count, unit="ms", goals=goals, note=WHY_START))
    return found


def bursts(mount: Ktaskfs, starter: Starter, where: Path, count: int, lines: int) -> Kind:
    """Many lines in one write, each with a separate file."""
    files = [where / f"burst{number}" for number in range(lines)]
    for file in files:
        file.write_bytes(bytes(4096))
    burst = Burst(mount, [f"clear path={file}" for file in files])
    calls = [
        Call(name, action, starter.spare, burst.forget)
        for name, action in (("until it returns", burst.start), ("until all are done", burst.job))
    ]
    goals = [Goal(calls[0].name, calls[0].name, None, most=BURST_MOST)]
    title = f"{lines} lines of one page in one write"
    return Kind(title, calls, count, unit="ms", rare=False, goals=goals, note=WHY_BURST)


def cpu_seconds(processes: list[psutil.Process]) -> list[float]:
    """CPU time of the daemon, of the spawner, and of all workers that have ended."""
    daemon, spawner = (process.cpu_times() for process in processes[:2])
    own = [times.user + times.system for times in (daemon, spawner)]
    return [*own, spawner.children_user + spawner.children_system]


def cpu(mount: Ktaskfs, starter: Starter, writers: dict[str, Writer], small: Path, count: int, rounds: int) -> Section:
    """CPU time of a task in all processes of the daemon; the first round is the warm-up."""
    processes = mount.processes()
    values: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for name, writer in writers.items():
            starter.spare()
            before = cpu_seconds(processes)
            for task in range(count):
                starter.spare()
                writer.start(f"clear path={small} name=cpu{task}")
                mount.wait(f"cpu{task}")
            starter.spare()
            spent = [(after - each) / count for after, each in zip(cpu_seconds(processes), before, strict=True)]
            for task in range(count):
                (mount.path / f"tasks/cpu{task}").rmdir()
            if number:
                rows = zip((name, *(f"{name}: {part}" for part in PARTS)), (sum(spent), *spent), strict=True)
                for row, value in rows:
                    values.setdefault(row, []).append(value)
    series = [Series(name, found) for name, found in values.items()]
    goals = [Goal(name, name, None, most=CPU_MOST) for name in writers]
    title = f"CPU time of a task of one page, mean of {count}"
    return Section(title, series, unit="ms", goals=goals, note=WHY_CPU)


def cpu_beside_c(mount: Ktaskfs, starter: Starter, where: Path, settings: Settings) -> Section:
    """CPU time of tasks that allocate a file of huge pages each, and of one program that makes the same files."""
    count, length = (4, PAGE) if settings.smoke else (FILES, FILE_SIZE)
    files = [where / f"file{number}" for number in range(count)]
    tasks = Burst(mount, [f"fallocate path={file} length={length}" for file in files])
    processes = mount.processes()
    program = build("files")

    def ours() -> float:
        starter.spare()
        before = sum(cpu_seconds(processes))
        tasks.job()
        starter.spare()
        spent = sum(cpu_seconds(processes)) - before
        tasks.forget()
        return spent

    def afresh() -> None:
        for file in files:
            file.unlink(missing_ok=True)

    in_c = f"C, {count} files"
    contenders = [
        Contender(f"ktaskfs, {count} tasks", ours, afresh),
        Contender(in_c, lambda: inner_seconds(program, count, length, where), afresh),
    ]
    with reserved(PAGE, count * length):
        series = alternate(contenders, settings.rounds)
        afresh()
    goals = [Goal("CPU time against C", contenders[0].name, in_c, most=CPU_RATIO_MOST)]
    title = f"CPU time of {count} files of {human_size(length)} of huge pages"
    return Section(title, series, unit="ms", goals=goals, note=WHY_FILES)


def measure(settings: Settings) -> list[Section]:
    count, burst, lines, tasks = (4, 2, 3, 2) if settings.smoke else (100, 5, BURST, 50)
    sections = []
    with ExitStack() as stack:
        where = stack.enter_context(directory())
        memory = stack.enter_context(tmpfs(where / "memory"))
        small = memory / "small"
        small.write_bytes(bytes(4096))
        mount = stack.enter_context(Ktaskfs(where / "mnt", where / "state"))
        starter = Starter(mount, small)
        places = stack.enter_context(groups_beside(stack.enter_context(cgroup2(where / "cgroup"))))
        writers = {
            name: stack.enter_context(contextlib.closing(Writer(mount, groups))) for name, groups in places.items()
        }
        for kind in [*kinds(mount, starter, small, writers, count), bursts(mount, starter, memory, burst, lines)]:
            sections += measured(kind, settings.rounds, 0)
        sections.append(cpu(mount, starter, writers, small, tasks, settings.rounds))
        huge = stack.enter_context(hugetlbfs(where / "huge", PAGE))
        sections.append(cpu_beside_c(mount, starter, huge, settings))
    return sections


if __name__ == "__main__":
    main("starts", "Starts of short tasks", measure)
