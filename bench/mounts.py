"""The objects of measurements: a mounted ktaskfs, a minimal filesystem, and memory for their work."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from bench.peers import build

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

DEADLINE: Final = 30.0
KTASKFS: Final = Path(sys.executable).with_name("ktaskfs")


@contextlib.contextmanager
def directory(parent: Path | None = None) -> Iterator[Path]:
    """A temporary directory with a short path; in ``parent`` where it matters what filesystem that is on."""
    with tempfile.TemporaryDirectory(prefix="kt-bench-", dir=parent) as path:
        yield Path(path)


@contextlib.contextmanager
def hugetlbfs(where: Path, page_size: int) -> Iterator[Path]:
    """A hugetlbfs on the new directory ``where``."""
    where.mkdir()
    subprocess.run(["mount", "-t", "hugetlbfs", "-o", f"pagesize={page_size}", "none", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def _runs(process: psutil.Process) -> bool:
    """False for an ended process, even if its status was not read yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Ktaskfs:
    """A mounted ktaskfs, driven through its files as a program would, with plain system calls."""

    def __init__(self, path: Path, statedir: Path, *, options: str = "mode=0660") -> None:
        """``ktaskfs mount`` on the new directory ``path``; ``ready_seconds`` is until the first file was read.

        The new directory ``statedir`` is a tmpfs, as the default one below /run is; /tmp may be on a disk.
        """
        self.path = path
        path.mkdir()
        self._statedir = statedir
        statedir.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "none", str(statedir)], check=True)
        start = time.perf_counter()
        subprocess.run([str(KTASKFS), "mount", "-o", f"statedir={statedir},{options}", str(path)], check=True)
        self.version = self.read("version").strip()
        self.ready_seconds = time.perf_counter() - start
        self._marker = str(path)
        self._control: int | None = None

    def __enter__(self) -> Ktaskfs:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmount, and wait until the daemon has ended."""
        processes = self.processes()
        if self._control is not None:
            os.close(self._control)
        end = time.monotonic() + DEADLINE
        # An attacker with thousands of threads that was killed may still be about to close its files.
        while subprocess.run(["umount", str(self.path)], capture_output=True, check=False).returncode:
            if time.monotonic() > end:
                raise RuntimeError(f"{self.path} is busy")
            time.sleep(0.01)
        while any(map(_runs, processes)):
            if time.monotonic() > end:
                raise RuntimeError(f"still there after the unmount: {processes}")
            time.sleep(0.001)
        self.path.rmdir()
        # A worker that was forked in advance since they were counted may still be about to end.
        while subprocess.run(["umount", str(self._statedir)], stderr=subprocess.DEVNULL, check=False).returncode:
            if time.monotonic() > end:
                raise RuntimeError(f"{self._statedir} is still in use after the unmount")
            time.sleep(0.001)
        self._statedir.rmdir()

    def read(self, name: str) -> str:
        """A file of the mount, to its end."""
        return (self.path / name).read_text()

    def submit(self, spec: str) -> None:
        """Write one job spec, the first opens ``tasks/control``; returns when the task has started."""
        if self._control is None:  # not before: each fork of its holder asks the daemon to close a copy
            self._control = os.open(self.path / "tasks/control", os.O_WRONLY)
        try:
            os.pwrite(self._control, spec.encode(), 0)
        except OSError as error:
            raise RuntimeError(f"{spec}: {error}: {self.read('info/last_cmd_status').strip()}") from error

    def wait(self, task: str) -> None:
        """Read ``wait`` to its end; RuntimeError unless the task was done."""
        lines = self.read(f"tasks/{task}/wait").splitlines()
        if not lines or lines[-1] != "done":
            raise RuntimeError(f"{task}: {lines[-1:]}: {self.read(f'tasks/{task}/error')}")

    def processes(self) -> list[psutil.Process]:
        """The daemon, found by its mount point, and all below it, the daemon first."""
        for process in psutil.process_iter(["cmdline"]):
            if self._marker in (process.info["cmdline"] or []):
                return [process, *process.children(recursive=True)]
        raise RuntimeError("the daemon is not running")


class Served:
    """A filesystem with a file ``status``, served by a separate process until it is unmounted."""

    def __init__(self, path: Path, command: Sequence[str]) -> None:
        """Run ``command``, which mounts on the new directory ``path``; ``ready_seconds`` as for Ktaskfs."""
        self.path = path
        path.mkdir()
        start = time.perf_counter()
        self._process = subprocess.Popen(command)
        self.process = psutil.Process(self._process.pid)
        while not os.path.ismount(path):
            if self._process.poll() is not None or time.perf_counter() - start > DEADLINE:
                raise RuntimeError("the minimal filesystem does not mount")
            time.sleep(0.001)
        (path / "status").read_bytes()
        self.ready_seconds = time.perf_counter() - start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        subprocess.run(["umount", str(self.path)], check=True)
        self._process.wait(DEADLINE)
        self.path.rmdir()


class MinimalFs(Served):
    """A mounted ``bench.minimal_fs`` whose file ``status`` has ``size`` bytes; ``options`` are words of its usage."""

    def __init__(self, path: Path, size: int, *options: str) -> None:
        super().__init__(path, [sys.executable, "-m", "bench.minimal_fs", str(path), str(size), *options])


class MinimalFsInC(Served):
    """The same in C, with ``files`` files of that size; needs libfuse 3's headers."""

    def __init__(self, path: Path, size: int, files: int) -> None:
        super().__init__(path, [str(build("minimal_fs", "fuse3")), str(path), str(size), str(files)])


@contextlib.contextmanager
def cgroup2(where: Path) -> Iterator[Path | None]:
    """Where cgroup v2 is mounted, if need be on the new directory ``where``; None where the kernel has none."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            yield Path(before.split()[4])
            return
    where.mkdir()
    try:
        if subprocess.run(["mount", "-t", "cgroup2", "none", str(where)], capture_output=True, check=False).returncode:
            yield None
            return
        try:
            yield where
        finally:
            subprocess.run(["umount", str(where)], check=True)
    finally:
        where.rmdir()
