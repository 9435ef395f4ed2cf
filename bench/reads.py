"""The cost of a look at a task: requests of the kernel, and time with the daemon on the same or the other CPU.

Usage: python -m bench.reads [--smoke] [--rounds N] (as root: it mounts a tmpfs)
"""

from __future__ import annotations

import contextlib
import functools
import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from bench.calls import MINIMAL, RUN, Call, Kind, measured, open_read_close
from bench.harness import Goal, Section, Settings, Table, main
from bench.interface import tmpfs
from bench.mounts import Ktaskfs, MinimalFs, directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import psutil

EXACT: Final = "minimal filesystem, pyfuse3, exact sizes and close(2)"
SAME: Final = "minimal filesystem, pyfuse3, the same requests"
SLOW: Final = "rate_max=4K chunk=4K"
NOTE: Final = (
    "The second minimal filesystem only does what exact sizes and an error of close(2) need: the kernel looks the "
    "file up each time, and reports each close(2). ktaskfs has two more requests: one for the link `tasks`, which "
    "leads each user to another place, and one that asks whether the task still exists. The third minimal filesystem "
    "has these, too; the rest is the time of ktaskfs's own code, with the text. A reader in the task's directory "
    "saves both; a reader that keeps the file open and reads at offset 0 needs only the read."
)

WHY_BY_PATH: Final = (
    "ktaskfs answers seven requests, the first minimal filesystem three. With the same seven, the third one takes "
    "more than twice as long as the first; the rest is the code of ktaskfs, and its text."
)


@dataclass(frozen=True)
class Looked:
    """A file that is looked at, the directory it is in and the file itself as descriptors, and who serves it."""

    name: str
    path: Path
    directory: int
    fd: int
    server: psutil.Process

    @classmethod
    def at(cls, stack: ExitStack, name: str, path: Path, server: psutil.Process) -> Looked:
        """The descriptors are open as long as ``stack``."""
        opened = os.open(path.parent, os.O_PATH), os.open(path, os.O_RDONLY)
        for fd in opened:
            stack.callback(os.close, fd)
        return cls(name, path, *opened, server)

    def by_path(self) -> None:
        """A program that looks once."""
        open_read_close(self.path)

    def in_directory(self) -> None:
        """The same in the directory."""
        fd = os.open(self.path.name, os.O_RDONLY, dir_fd=self.directory)
        os.read(fd, 65536)
        os.close(fd)

    def again(self) -> None:
        """A program that looks often: a read at offset 0 makes a new text."""
        os.pread(self.fd, 65536, 0)


WAYS: Final = {
    "Open, read, close": Looked.by_path,
    "Open, read, close in the directory": Looked.in_directory,
    "Read again at offset 0": Looked.again,
}


def requests(files: Iterable[Looked], times: int) -> Section:
    """How many of them each filesystem answers: to answer one takes its process one write(2)."""

    def counted(file: Looked, way: Callable[[Looked], None]) -> str:
        way(file)
        before = file.server.io_counters().write_count
        for _ in range(times):
            way(file)
        return f"{(file.server.io_counters().write_count - before) / times:.1f}"

    rows = [[file.name, *(counted(file, way) for way in WAYS.values())] for file in files]
    return Section("Requests of the kernel", [], tables=[Table(["", *WAYS], rows)], note=NOTE)


@contextlib.contextmanager
def placed(processes: Iterable[psutil.Process], ours: int, theirs: int) -> Iterator[None]:
    """This process runs on the CPU ``ours`` and the daemon on ``theirs``, with all threads."""
    threads = [thread.id for process in processes for thread in process.threads()]
    before = {tid: os.sched_getaffinity(tid) for tid in (0, *threads)}
    try:
        for tid in before:
            _bind(tid, {theirs if tid else ours})
        yield
    finally:
        for tid, cpus in before.items():
            _bind(tid, cpus)


def _bind(tid: int, cpus: set[int]) -> None:
    with contextlib.suppress(ProcessLookupError):  # a thread of a pool has ended
        os.sched_setaffinity(tid, cpus)


def kinds(files: list[Looked], count: int, most: float) -> Iterator[Kind]:
    """``most``: the maximum ratio to the bare filesystem."""
    ours = [file.name for file in files if file.name.startswith("ktaskfs")]
    for title, way in WAYS.items():
        limit_by_path = most if way is Looked.by_path else None
        wanted = ((MINIMAL, limit_by_path), (EXACT, None), (SAME, limit_by_path))
        goals = [Goal(f"{name} against the {peer}", name, peer, most=limit) for name in ours for peer, limit in wanted]
        calls = [Call(file.name, functools.partial(way, file)) for file in files]
        yield Kind(title, calls, count, RUN, goals=goals, note=WHY_BY_PATH if way is Looked.by_path else "")


def measure(settings: Settings) -> list[Section]:
    count = 10 if settings.smoke else 500
    with ExitStack() as stack:
        where = stack.enter_context(directory())
        memory = stack.enter_context(tmpfs(where / "memory"))
        mount = stack.enter_context(Ktaskfs(where / "mnt", where / "state"))
        (memory / "small").write_bytes(bytes(4096))
        mount.submit(f"clear path={memory}/small name=ended")
        mount.wait("ended")
        with (memory / "large").open("wb") as large:
            large.truncate(1 << 40)
        mount.submit(f"clear path={memory}/large name=running {SLOW}")
        stack.callback(mount.submit, "cancel")
        daemon = mount.processes()[0]
        files = [
            Looked.at(stack, f"ktaskfs, `{name}`, {task}", mount.path / "tasks" / task / name, daemon)
            for task, names in (("ended", ("state", "progress", "status")), ("running", ("progress",)))
            for name in names
        ]
        size = len(files[2].path.read_bytes())
        for name, options, path in (
            (MINIMAL, [], "status"),
            (EXACT, ["--exact"], "status"),
            (SAME, ["--same"], "link/task/status"),
        ):
            peer = stack.enter_context(MinimalFs(where / f"minimal{len(files)}", size, *options))
            files.append(Looked.at(stack, name, peer.path / path, peer.process))
        sections = [requests(files, count)]
        cpus = sorted(os.sched_getaffinity(0))
        for which, theirs, most in (("the same CPU", cpus[0], 1.3), ("another CPU", cpus[-1], 1.5)):
            with placed({file.server for file in files}, cpus[0], theirs):
                for kind in kinds(files, count, most):
                    title = f"{kind.title}, the filesystem kept on {which}"
                    sections += measured(replace(kind, title=title), settings.rounds, 0)
    return sections


if __name__ == "__main__":
    main("reads", "Looking at a task", measure)
