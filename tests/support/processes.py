"""Facts about processes; stops one, or finds one among the children of another."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import psutil

from tests.support.poll import until


def has_ended(process: psutil.Process) -> bool:
    """Whether the process has ended, even if its status was not read yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def halt(pid: int) -> None:
    """Send SIGSTOP, and return when every thread has stopped.

    Until then a thread of a FUSE daemon may take another request, and whoever waits for that cannot be interrupted.
    """
    os.kill(pid, signal.SIGSTOP)
    threads = Path(f"/proc/{pid}/task")
    until(lambda: all(map(_is_stopped, threads.glob("*/stat"))), f"every thread of {pid} has stopped")


def _is_stopped(stat: Path) -> bool:
    """Whether a thread has stopped or ended; proc_pid_stat(5)."""
    try:
        return stat.read_text().rpartition(") ")[2][0] in "TtZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def child_called(parent: int, word: str) -> psutil.Process:
    """The one living child of ``parent`` whose command line has ``word`` in it, once there is one.

    The dead ones have none, and a process that gives itself another one has none for a moment.
    """
    found: list[psutil.Process] = []

    def look() -> bool:
        found.clear()
        for child in psutil.Process(parent).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie, too
                if word in " ".join(child.cmdline()):
                    found.append(child)
        return bool(found)

    until(look, f"a child of {parent} that is called {word}")
    (only,) = found
    return only


def status_of(pid: int | str) -> dict[str, list[str]]:
    """The words of each line of /proc/PID/status."""
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {key: value.split() for key, _, value in lines}
