"""One process of a hammer: random actions on a mount, with a check of each outcome.

    python -m tests.support.hammer MOUNT DIRECTORY NAME SEED SECONDS

It knows the exact state of tasks with its own names. Of tasks with shared names it knows the possible errors. It prints
the number of each action as JSON, and ends with a traceback if the mount did anything else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import select
import sys
import time
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STATIC: Final = (
    "README",
    "version",
    "metrics",
    "metrics.openmetrics",
    "info/tasks",
    "info/tasks.json",
    "info/nodes",
    "info/hugepages",
    "info/last_cmd_status",
    "info/error_log",
)
STATIC_DIRECTORIES: Final = (".", "debug", "info", "operations", "operations/clear", "tasks")
STATUS: Final = (
    *("state", "status", "stat", "stat.json", "progress", "threads", "result", "error"),
    *("control", "path", "op"),
)
SHARED: Final = ("shared-1", "shared-2", "shared-3")
SIZE: Final = 1 << 20

T = TypeVar("T")


class Fate(Enum):
    """The known state of a task with a name of this process."""

    MISSING = 0
    NEW = 1
    STARTED = 2
    ENDED = 3


def when_examined(call: Callable[[], T]) -> T:
    """The result of ``call``, repeated while a machine with too much to do has no time to examine this process.

    ETIMEDOUT says so, and then nothing was done.
    """
    while True:
        try:
            return call()
        except TimeoutError:
            continue


class Hammer:
    """``allowed`` names the errors that an action may meet; anything else is a failure of the mount."""

    def __init__(self, mount: Path, directory: Path, name: str, seed: int) -> None:
        self.mount = mount
        self.random = random.Random(seed)
        self.fates = {f"{name}-{number}": Fate.MISSING for number in range(4)}
        self.target = directory / f"hammer-{name}"
        self.target.write_bytes(b"x" * SIZE)
        self.done: Counter[str] = Counter()
        self.events = os.open(mount / "events", os.O_RDONLY | os.O_NONBLOCK)

    def run(self, seconds: float) -> None:
        """Hammer for ``seconds``, and until each action is done twice; then remove all tasks with its own names."""
        actions: list[Callable[[], None]] = [
            self.make,
            self.remove,
            self.start,
            self.command,
            self.configure,
            self.read,
            self.read_static,
            self.list,
            self.poll,
            self.follow,
            self.share,
            self.refuse,
            self.hear,
            self.outlive,
        ]
        end = time.monotonic() + seconds
        while time.monotonic() < end or min(self.done[each.__name__] for each in actions) < 2:
            action = self.random.choice(actions)
            action()
            self.done[action.__name__] += 1
        os.close(self.events)
        for name, fate in self.fates.items():
            if fate is Fate.STARTED:
                self.end(name)
            if fate is not Fate.MISSING:
                os.rmdir(self.path(name))

    def path(self, name: str, file: str = "") -> Path:
        return self.mount / "tasks" / name / file

    def own(self) -> tuple[str, Fate]:
        name = self.random.choice(list(self.fates))
        return name, self.fates[name]

    @contextlib.contextmanager
    def meets(self, *allowed: int) -> Iterator[list[int]]:
        """The body must fail with one of the errors ``allowed``, 0 for none; the list then holds which."""
        met = [0]
        try:
            yield met
        except OSError as error:
            met[0] = error.errno or -1
        assert met[0] in allowed, f"{errno.errorcode.get(met[0], met[0])} is not among {allowed}; {self.fates}"

    def write(self, path: Path, text: str) -> None:
        fd = when_examined(lambda: os.open(path, os.O_WRONLY))
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def make(self) -> None:
        name, fate = self.own()
        with self.meets(0 if fate is Fate.MISSING else errno.EEXIST):
            when_examined(lambda: os.mkdir(self.path(name)))
        if fate is Fate.MISSING:
            self.fates[name] = Fate.NEW

    def remove(self) -> None:
        name, fate = self.own()
        allowed = {Fate.MISSING: [errno.ENOENT], Fate.STARTED: [0, errno.EBUSY]}
        with self.meets(*allowed.get(fate, [0])) as met:
            os.rmdir(self.path(name))
        if met == [0]:
            self.fates[name] = Fate.MISSING

    def outlive(self) -> None:
        """Keep a file open of a task that is removed, and perhaps made again."""
        name, fate = self.own()
        if fate not in (Fate.NEW, Fate.ENDED):
            return
        file, text = self.random.choice([("control", "resume"), ("control", "start"), ("nice", "3"), ("length", "1M")])
        fd = when_examined(lambda: os.open(self.path(name, file), os.O_WRONLY))
        os.rmdir(self.path(name))
        self.fates[name] = Fate.MISSING
        if self.random.random() < 0.5:
            self.start()
        with self.meets(errno.ENODEV):
            os.write(fd, text.encode())
        os.close(fd)

    def start(self) -> None:
        name, fate = self.own()
        slow = " rate_max=64K chunk=4K" if self.random.random() < 0.3 else ""
        with self.meets(0 if fate is Fate.MISSING else errno.EEXIST):
            self.write(self.mount / "tasks/control", f"clear path={self.target} name={name}{slow}")
        if fate is Fate.MISSING:
            self.fates[name] = Fate.STARTED

    def command(self) -> None:
        name, fate = self.own()
        verb = self.random.choice(["cancel", "pause", "resume", "kill"])
        allowed = {Fate.MISSING: [errno.ENOENT], Fate.STARTED: [0, errno.EBUSY], Fate.ENDED: [0, errno.EBUSY]}
        with self.meets(*allowed.get(fate, [errno.EBUSY])) as met:
            self.write(self.path(name, "control"), verb)
        if fate is Fate.ENDED and met == [0]:
            assert verb == "resume"
            self.fates[name] = Fate.STARTED

    def configure(self) -> None:
        name, fate = self.own()
        parameter, text = self.random.choice([("length", "4K"), ("rate_max", "max"), ("nice", "7"), ("offset", "-1")])
        live = parameter in ("rate_max", "nice")
        allowed = {
            Fate.MISSING: [errno.ENOENT],
            Fate.NEW: [errno.EINVAL if text == "-1" else 0],
        }
        with self.meets(*allowed.get(fate, [0, errno.EBUSY] if live else [errno.EBUSY, errno.EINVAL])):
            self.write(self.path(name, parameter), text)

    def read(self) -> None:
        name, fate = self.own()
        file = self.random.choice(STATUS)
        states = {Fate.NEW: {"new"}, Fate.ENDED: {"done", "failed", "cancelled", "interrupted"}}
        allowed = [0] if fate is not Fate.MISSING else [errno.ENOENT]
        if fate is Fate.NEW and file == "path":
            allowed.append(errno.ENOENT)
        with self.meets(*allowed) as met:
            text = self.path(name, file).read_text()
        if met == [0] and file == "state" and fate in states:
            assert text.strip() in states[fate]
        if met == [0] and file == "progress":
            done, total = map(int, text.split(" / "))
            assert 0 <= done <= total <= SIZE

    def read_static(self) -> None:
        fd = os.open(self.mount / self.random.choice(STATIC), os.O_RDONLY)
        try:
            while os.read(fd, self.random.choice([1, 100, 65536])) and self.random.random() < 0.9:
                pass
        finally:
            os.close(fd)

    def list(self) -> None:
        names = set(os.listdir(self.mount / self.random.choice(STATIC_DIRECTORIES)))
        if "control" in names:
            for name, fate in self.fates.items():
                assert (name in names) is (fate is not Fate.MISSING)

    def poll(self) -> None:
        name, fate = self.own()
        if fate is Fate.MISSING:
            return
        fd = os.open(self.path(name, self.random.choice(["state", "status", "progress"])), os.O_RDONLY)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            assert poll.poll(0), "a file that was not read yet counts as changed"
            os.pread(fd, 4096, 0)
            poll.poll(self.random.choice([0, 1, 50]))
        finally:
            os.close(fd)

    def follow(self) -> None:
        name, fate = self.own()
        if fate is Fate.STARTED:
            self.end(name)
        elif fate is Fate.NEW:
            fd = os.open(self.path(name, "wait"), os.O_RDONLY | os.O_NONBLOCK)
            with self.meets(errno.EAGAIN):
                os.read(fd, 100)
            os.close(fd)

    def end(self, name: str) -> None:
        with self.meets(0, errno.EBUSY):
            self.write(self.path(name, "control"), "cancel")
        assert self.path(name, "wait").read_text().split()[-1] in ("done", "cancelled", "interrupted")
        self.fates[name] = Fate.ENDED

    def share(self) -> None:
        name = self.random.choice(SHARED)
        with self.meets(0, errno.EEXIST):
            when_examined(lambda: os.mkdir(self.path(name)))
        with self.meets(0, errno.ENOENT, errno.ENODEV, errno.ESTALE):  # ESTALE: removed and made again, twice
            self.path(name, "status").read_text()
        with self.meets(0, errno.ENOENT):
            os.rmdir(self.path(name))

    def refuse(self) -> None:
        with self.meets(errno.EINVAL):
            self.write(self.mount / "tasks/control", self.random.choice([" ", "clear", "x" * 100, "clear path=/ q"]))
        with self.meets(errno.EACCES):
            self.write(self.mount / "version", "2")
        with self.meets(errno.EPERM):
            os.mkdir(self.mount / "debug/x")
        with self.meets(errno.EPERM):
            os.rename(self.mount / "version", self.mount / "other")

    def hear(self) -> None:
        with self.meets(0, errno.EAGAIN):
            for line in os.read(self.events, 1 << 20).decode().splitlines():
                assert len(line.split()) in (5, 6)


def main() -> None:
    mount, directory, name, seed, seconds = sys.argv[1:]
    hammer = Hammer(Path(mount), Path(directory), name, int(seed))
    hammer.run(float(seconds))
    print(json.dumps(hammer.done))


if __name__ == "__main__":
    main()
