"""What one unprivileged user can do to a mount, as hard as it can: ``python -m bench.attackers ATTACK MOUNT``.

Each prints a line when it is at work, and goes on until it is killed.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND_MAX: Final = 64 << 10
RESULT_HOLES: Final = 4096
"""Pages with a hole after each: the survey of such a file has a result of some 100 KiB."""


def _in_threads(count: int, work: Callable[[], object]) -> None:
    def again_and_again() -> None:
        while True:
            with contextlib.suppress(OSError):  # a refusal is an answer, too
                work()

    threading.stack_size(64 << 10)
    for _ in range(count):
        threading.Thread(target=again_and_again, daemon=True).start()


def slow_specs(mount: Path) -> None:
    """60 writers of specs of 64 KiB, each as costly to read as it can be."""
    words = b"copy path=" + b"a'b'" * (COMMAND_MAX // 4 - 8)
    _in_threads(60, lambda: (mount / "tasks/control").write_bytes(words[: COMMAND_MAX - 1]))


def many_lines(mount: Path) -> None:
    """60 writers of some thousand specs at a time, none of which can start."""
    lines = b"fallocate path=/nowhere length=1\n" * (COMMAND_MAX // 33)
    _in_threads(60, lambda: (mount / "tasks/control").write_bytes(lines))


def metrics(mount: Path) -> None:
    """800 readers of ``metrics``."""
    _in_threads(800, lambda: (mount / "metrics").read_bytes())


def waiters(mount: Path) -> None:
    """4,500 readers of one ``wait``."""
    (mount / "tasks/attack").mkdir()
    fd = os.open(mount / "tasks/attack/wait", os.O_RDONLY)
    _in_threads(4500, lambda: os.pread(fd, 4096, 1 << 40))


def results(mount: Path) -> None:
    """As many openings of a large ``result`` as one process may have."""
    fd = os.memfd_create("attack")
    for page in range(RESULT_HOLES):
        os.pwrite(fd, b"x", page * 8192)
    control = mount / "tasks/control"
    control.write_text(f"survey path=/proc/{os.getpid()}/fd/{fd} name=attack")
    with open(mount / "tasks/attack/wait", "rb") as wait:
        wait.read()
    _open_all(mount / "tasks/attack/result", os.O_RDONLY)


def openings(mount: Path) -> None:
    """As many openings of ``tasks/control`` as one process may have."""
    _open_all(mount / "tasks/control", os.O_WRONLY)


def _open_all(path: Path, flags: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(most, 6000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.suppress(OSError):  # its own limit, or the daemon's
        while True:
            os.open(path, flags)


def helpers(mount: Path) -> None:
    """As many tasks as one user may have, each with a unit a second, so that they keep their helpers."""
    fd = os.memfd_create("attack")
    os.ftruncate(fd, 1 << 30)
    with contextlib.suppress(OSError):  # too many tasks
        while True:
            spec = f"fallocate path=/proc/{os.getpid()}/fd/{fd} rate_max=1"
            (mount / "tasks/control").write_text(spec)


ATTACKS: Final = {
    each.__name__: each for each in (slow_specs, many_lines, metrics, waiters, results, openings, helpers)
}


def main() -> None:
    attack, mount = sys.argv[1:]
    ATTACKS[attack](Path(mount))
    print(attack, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
