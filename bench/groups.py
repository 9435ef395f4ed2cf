"""Writers in other control groups than the daemon, whose workers must enter these groups."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.mounts import Ktaskfs

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
