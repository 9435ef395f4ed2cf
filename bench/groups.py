"""The cost of a start whose worker must enter its caller's control group.

Usage: python -m bench.groups [--smoke] [--rounds N] (as root)
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.calls import Call, Kind, Starter, measured
from bench.harness import Goal, Section, Settings, main
from bench.interface import tmpfs
from bench.mounts import Ktaskfs, cgroup2, directory

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS: Final = "the daemon's own groups"
WRITER: Final = """
import os, sys
control, *groups = sys.argv[1:]
for group in groups:
    with open(f"{group}/cgroup.procs", "w") as file:
        file.write("0")
fd = os.open(control, os.O_WRONLY)
print("ready", flush=True)
for line in sys.stdin:
    os.pwrite(fd, line.encode(), 0)
    print("started", flush=True)
"""
"""Goes into the groups, and then writes each line of its standard input to the control file."""


class Writer:
    """A process in separate groups that writes specs."""

    def __init__(self, mount: Ktaskfs, groups: list[Path]) -> None:
        command = [sys.executable, "-c", WRITER, str(mount.path / "tasks/control"), *map(str, groups)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._answer()

    def _answer(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError("the writer has ended")

    def start(self, spec: str) -> None:
        """Returns when the write has returned."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{spec}\n".encode())
        self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@contextlib.contextmanager
def group(above: Path) -> Iterator[Path]:
    """A new group in ``above``."""
    path = above / f"kt-bench-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


def version_1() -> Path | None:
    """The group of this process in a hierarchy of version 1; None if there is none."""
    ours = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    paths = {name: path for _, names, path in ours for name in names.split(",")}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        for name in options.split(","):
            # A new group of cpuset has no CPUs, and one of memory costs more than the move.
            if kind == "cgroup" and name in ("pids", "freezer"):
                return Path(point, paths[name].lstrip("/"))
    return None


@contextlib.contextmanager
def groups_beside(version_2: Path | None) -> Iterator[dict[str, list[Path]]]:
    """The groups to start tasks from, by their names in a table; ``version_2`` is where that hierarchy is mounted."""
    places: dict[str, list[Path]] = {OURS: []}
    with ExitStack() as stack:
        for name, above in (("another group of version 1", version_1()), ("another group of version 2", version_2)):
            if above is not None:
                places[name] = [stack.enter_context(group(above))]
        yield places


@contextlib.contextmanager
def favordynmods(point: Path) -> Iterator[bool]:
    """With that option of the hierarchy of version 2, for as long as it takes; whether there is one."""

    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    before = next(each[3] for each in mounts if each[1] == str(point) and each[2] == "cgroup2")

    def remount(options: str) -> bool:  # a source is named, or mount(8) would keep the options that there are
        command = ["mount", "-o", f"remount,{options}", "none", str(point)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    there = remount(f"{before},favordynmods")
    try:
        yield there
    finally:
        if there and not remount(before):
            raise RuntimeError(f"{point} has not got its options back")


def measure(settings: Settings) -> list[Section]:
    count = 4 if settings.smoke else 100
    sections = []
    with ExitStack() as stack:
        where = stack.enter_context(directory())
        small = stack.enter_context(tmpfs(where / "memory")) / "small"
        small.write_bytes(bytes(4096))
        mount = stack.enter_context(Ktaskfs(where / "mnt", where / "state"))
        starter = Starter(mount, small)
        version_2 = stack.enter_context(cgroup2(where / "cgroup"))
        places = stack.enter_context(groups_beside(version_2))

        def forget() -> None:
            mount.wait("start")
            (mount.path / "tasks/start").rmdir()

        calls = []
        for name, groups in places.items():
            writer = stack.enter_context(contextlib.closing(Writer(mount, groups)))
            action = functools.partial(writer.start, f"clear path={small} name=start")
            calls.append(Call(name, action, starter.spare, forget))
        goals = [Goal(OURS, OURS, None, most=5e-3)]
        goals += [Goal(f"{name} against {OURS}", name, OURS) for name in places if name != OURS]
        kind = Kind("The write that starts a task", calls, count, unit="ms", goals=goals)
        sections += measured(kind, settings.rounds, 0)
        if version_2 is not None:
            with favordynmods(version_2) as there:
                title = f"{kind.title}, with favordynmods"
                if there:
                    sections += measured(Kind(title, calls, count, unit="ms"), settings.rounds, 0)
                else:
                    sections.append(Section(title, [], note="This kernel does not have the option."))
    return sections


if __name__ == "__main__":
    main("groups", "Starts from other control groups", measure)
