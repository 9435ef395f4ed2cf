"""The attacks of one unprivileged user on a mount: ``python -m bench.attackers ATTACK MOUNT [FEWER]``.

Each prints a line when it has begun, and runs until it is killed. FEWER divides the numbers of users, threads and open
files of attacks on the daemon's memory.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import resource
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

OPEN_MAX: Final = 20_000
TASKS_MAX: Final = 64
USERS: Final = 32
MANY_FIRST_UID: Final = 4_000_001_000
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
    """60 concurrent writers of some thousand specs each, none of which can start."""
    lines = b"fallocate path=/nowhere length=1\n" * (COMMAND_MAX // 33)
    _in_threads(60, lambda: (mount / "tasks/control").write_bytes(lines))


def metrics(mount: Path) -> None:
    """800 readers of ``metrics``."""
    _in_threads(800, lambda: (mount / "metrics").read_bytes())


def waiters(mount: Path) -> None:
    """4,500 readers of one ``wait``, by all openings that a user may have: one at a time reads each."""
    (mount / "tasks/attack").mkdir()
    openings: list[int] = []
    with contextlib.suppress(OSError):
        while True:
            openings.append(os.open(mount / "tasks/attack/wait", os.O_RDONLY))
    each = itertools.cycle(openings)
    _in_threads(4500, lambda: os.read(next(each), 4096))


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


def everything(mount: Path, fewer: int = 1) -> None:
    """All that one user may hold (`_hold_all`), and requests and writes without end."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_MAX // fewer, OPEN_MAX))
    streams = _hold_all(mount, results=1, events=1024 // fewer)
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_MAX, OPEN_MAX))
    _ask_all(mount, streams, writers=600 // fewer, readers=4500 // fewer)


def many_users(mount: Path, fewer: int = 1) -> None:
    """The same by many users, each of which is a process; root begins it."""
    reader, writer = os.pipe()
    users = range(-(-USERS // fewer))
    for number in users:
        if os.fork() == 0:
            uid = MANY_FIRST_UID + number
            os.setgroups([uid] * 1024)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            try:
                streams = _hold_all(mount, results=0, events=16)
                _ask_all(mount, streams, writers=-(-32 // fewer), readers=-(-100 // fewer))
            finally:
                os.write(writer, b".")
            threading.Event().wait()
    for _ in users:
        os.read(reader, 1)


def _ask_all(mount: Path, streams: list[int], *, writers: int, readers: int) -> None:
    """Writes as long as may be, to many files: the kernel passes on one at a time to each. And reads that wait."""
    command = b"clear path=/x name=\xf0\x9f\x98\x80"  # in Python each of its characters takes four bytes
    command += b"x" * (COMMAND_MAX - 1 - len(command))
    files = itertools.cycle(mount / "tasks" / _name(number) / "control" for number in range(TASKS_MAX))
    for file in itertools.islice(files, writers):
        _in_threads(1, functools.partial(file.write_bytes, command))
    each = itertools.cycle(streams)
    _in_threads(readers, lambda: os.read(next(each), 4096))


def _name(number: int) -> str:
    return f"{os.getuid()}-{number:0>100}"


def _hold_all(mount: Path, *, results: int, events: int) -> list[int]:
    """Hold what lasts until it is refused: tasks with long paths, results, text, openers, streams, listings, logs.

    Returns the streams.
    """
    user = os.getuid()
    tasks, long = mount / "tasks", "/" + "x/" * 2047
    fd = os.memfd_create("attack")
    for page in range(RESULT_HOLES):
        os.pwrite(fd, b"x", page * 8192)
    for number in range(results):
        with contextlib.suppress(OSError):
            name = f"{user}-result-{number}"
            (tasks / "control").write_text(f"survey path=/proc/{os.getpid()}/fd/{fd} name={name}")
            (tasks / name / "wait").read_bytes()
    os.close(fd)
    with contextlib.suppress(OSError):
        for number in range(TASKS_MAX):
            task = tasks / _name(number)
            task.mkdir()
            (task / "op").write_text("copy")
            (task / "path").write_text(long)
            (task / "source").write_text(long)
    (tasks / _name(0)).mkdir(exist_ok=True)  # perhaps the only one, where others have taken the room for tasks
    streams = [os.open(tasks / _name(0) / "wait", os.O_RDONLY)]
    with contextlib.suppress(OSError):
        while True:
            streams.append(os.open(mount / "events", os.O_RDONLY))
    for path, flags in (
        (tasks / "control", os.O_WRONLY),
        *((tasks / f"{user}-result-{number}/result", os.O_RDONLY) for number in range(results)),
        (tasks / _name(0) / "path", os.O_RDONLY),
    ):
        with contextlib.suppress(OSError):
            while True:
                os.open(path, flags)
    with contextlib.suppress(OSError):
        while True:
            directory = os.open(tasks, os.O_RDONLY | os.O_DIRECTORY)
            os.listdir(directory)
    for _ in range(events):  # which nobody reads
        with contextlib.suppress(OSError):
            (tasks / f"{user}-event").mkdir()
            (tasks / f"{user}-event").rmdir()
    for _ in range(8):  # refusals that are kept
        with contextlib.suppress(OSError):
            (tasks / "control").write_bytes(b"clear \xf0\x9f\x98\x80" + b"x" * 8192)
    return streams


ATTACKS: Final[dict[str, Callable[..., None]]] = {
    each.__name__: each for each in (slow_specs, many_lines, metrics, waiters, results, openings, helpers)
}

AS_ROOT: Final[dict[str, Callable[..., None]]] = {many_users.__name__: many_users}
"""Attacks by many users at once, which root begins."""
ON_MEMORY: Final[dict[str, Callable[..., None]]] = {everything.__name__: everything} | AS_ROOT
"""Attacks on the daemon's memory."""


def main() -> None:
    attack, mount, *fewer = sys.argv[1:]
    (ATTACKS | ON_MEMORY)[attack](Path(mount), *map(int, fewer))
    print(attack, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
