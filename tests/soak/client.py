"""The actions of one process of a long run on a mount: requests with their times, tasks with checks of their ends.

There is no shell in between: the process is the caller, as with the hammer.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import time
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Final

from tests.support.poll import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB: Final = 1 << 20
PATIENCE: Final = DEADLINE
"""Seconds within which any request must be answered, on a busy machine and at a low priority too."""
ENDED: Final = frozenset({"done", "planned", "failed", "cancelled", "interrupted"})
_RETRY: Final = {"failed", "cancelled", "interrupted"}
FOLLOWING: Final = {
    "-": {"new", "queued"},
    "new": {"queued", "starting", "-"},
    "queued": {"starting", "-", *_RETRY},
    "starting": {"running", "planned", "new", "-", *_RETRY},
    "running": {"paused", *ENDED},
    "paused": {"running", *ENDED},
    "done": {"-"},
    "planned": {"-"},
    **{key: {"queued", "starting", "-"} for key in _RETRY},
}
"""The possible next states of a task in each state; "-" is a task that does not exist, as in ``events``."""


RETRIED: Final = {"EAGAIN": "waited at the limit of tasks", "ETIMEDOUT": "tried again after ETIMEDOUT"}
"""Refusals of a write that come to nothing, and how they are counted."""


class SpawnerDied(Exception):
    """A start was lost with its spawner, which another process kills at times; nothing of the task remains."""


class Transitions:
    """Follows ``events`` of every task and knows which changes of state there may be."""

    def __init__(self) -> None:
        self.seen = 0
        self._states: dict[str, str] = {}

    def hear(self, text: str) -> None:
        """Take lines of ``events``; raises AssertionError for a change that may not be, or was left out."""
        for line in text.splitlines():
            if not line:
                continue
            _, name, old, new, *pairs = line.split()
            if name == "-":
                assert pairs[0].startswith("lost="), line
                self._states.clear()
                continue
            assert old in FOLLOWING, line
            assert new in FOLLOWING[old], f"a task may not do that: {line}"
            if old == "-" and self._states.get(name) in ENDED:  # replace=1: no line tells of the removed one
                del self._states[name]
            assert self._states.get(name, old) == old, f"it was {self._states[name]} before: {line}"
            self._states[name] = new
            if new == "-":
                del self._states[name]
            self.seen += 1


class Client:
    """One caller. ``counts`` has tasks as ``OPERATION STATE``, refusals as ``refused ERRNO``, and other actions.

    All task names begin with ``name``, so that they differ from those of others.
    """

    def __init__(self, mount: Path, name: str, seed: int) -> None:
        self.mount = mount
        self.name = name
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.slowest = 0.0
        """Seconds that any request took, at most."""
        self.tasks = 0
        """Started."""
        self.words: set[str] = set()
        """Operations that ``start`` has started since somebody cleared it."""
        self._number = 0

    def new_name(self) -> str:
        self._number += 1
        return f"{self.name}-{self._number}"

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """The body is one request."""
        begin = time.monotonic()
        yield
        taken = time.monotonic() - begin
        self.slowest = max(self.slowest, taken)
        assert taken < PATIENCE, f"an answer took {taken:.1f} s"

    def write(self, file: str, text: str) -> str:
        """One write(2); "ok" or the errno's name.

        It is repeated while the user's tasks are as many as they may be (EAGAIN), and when the machine had no time to
        look at this process (ETIMEDOUT, of open(2)), which is counted.
        """
        end = time.monotonic() + 2 * PATIENCE
        while (got := self._write(file, text)) in RETRIED and time.monotonic() < end:
            self.counts[RETRIED[got]] += 1
            time.sleep(0.05)
        return got

    def put(self, file: str, text: str) -> None:
        """One write(2) that must succeed."""
        got = self.write(file, text)
        assert got == "ok", f"{file}: {got}: {self.read('info/last_cmd_status')}"

    def _write(self, file: str, text: str) -> str:
        try:
            with self.timed():
                fd = os.open(self.mount / file, os.O_WRONLY)
                try:
                    os.write(fd, text.encode())
                finally:
                    os.close(fd)
        except OSError as error:
            return errno_name(error)
        return "ok"

    def make(self, task: str) -> None:
        """mkdir(2) of a task, when there is room for one more; raises OSError."""
        end = time.monotonic() + 2 * PATIENCE
        while True:
            try:
                with self.timed():
                    os.mkdir(self.mount / "tasks" / task)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise
                self.counts[RETRIED["EAGAIN"]] += 1
                time.sleep(0.05)
            else:
                return

    def read(self, file: str) -> str:
        """All of a file that is no stream; raises OSError."""
        with self.timed():
            return (self.mount / file).read_text()

    def refused(self, got: str, *allowed: str) -> None:
        """Check that a request was refused with one of ``allowed``, and count it."""
        assert got in allowed, f"{got} and not one of {allowed}: {self.read('info/last_cmd_status')}"
        self.counts[f"refused {got}"] += 1

    def start(self, spec: str) -> str:
        """Start a task; its name. Raises SpawnerDied."""
        name = self.new_name()
        self.started(self.write("tasks/control", f"{spec} name={name}"), name)
        self.words.add(spec.split(maxsplit=1)[0])
        return name

    def started(self, got: str, *names: str) -> None:
        """Check the answer to a request that sets tasks to work; raises SpawnerDied."""
        if got == "EIO":  # does not show whose task it was; another process of the same user may have written since
            self.counts["starts lost with the spawner"] += 1
            raise SpawnerDied
        assert got == "ok", f"{got}: {self.read('info/last_cmd_status')}"
        self.tasks += len(names)

    def stat(self, task: str) -> dict[str, str]:
        return dict(line.split(" ", 1) for line in self.read(f"tasks/{task}/stat").splitlines())

    def wait(self, task: str) -> str:
        """Follow a task to its end; the state. A line must come every few seconds."""
        fd = os.open(self.mount / f"tasks/{task}/wait", os.O_RDONLY)
        try:
            text = ""
            while True:
                with self.timed():
                    part = os.read(fd, 1 << 16)
                if not part:
                    break
                text += part.decode()
        finally:
            os.close(fd)
        state = text.split()[-1]
        assert state in ENDED, text
        stat = self.stat(task)
        assert stat["state"] == state
        self.counts[f"{stat['operation']} {state}"] += 1
        if state == "failed" and "spawner" in self.read(f"tasks/{task}/error"):
            self.counts["starts lost with the spawner"] += 1
            raise SpawnerDied
        return state

    def end(self, task: str, state: str = "done") -> str:
        """Follow a task to ``state``; its result."""
        got = self.wait(task)
        assert got == state, f"{got} and not {state}: {self.read(f'tasks/{task}/error')}"
        if state == "done" and got == "done":
            stat = self.stat(task)
            assert stat["done"] == stat["total"], stat
        return self.read(f"tasks/{task}/result")

    def run(self, spec: str, state: str = "done") -> str:
        """Start a task, follow it to ``state``, forget most of those; the result."""
        name = self.start(spec)
        result = self.end(name, state)
        self.forget(name)
        return result

    def forget(self, task: str) -> None:
        """Remove a task that has ended, or leave it to ``keep_finished``."""
        if self.random.random() < 0.8:
            with self.timed():
                os.rmdir(self.mount / "tasks" / task)

    def finish_rest(self, task: str, file: Path, size: int, marks: bool = True) -> tuple[int, ...]:
        """Resume a task that was interrupted or cancelled: all is done in the end, and nothing twice.

        With ``marks`` it first changes bytes that are done already, as ``error`` says; where, is returned: what is
        there must stay.
        """
        before, places = self.stat(task), tuple[int, ...]()
        if marks and before["state"] == "interrupted":
            first_left = int(before["error_position"])
            places = (0, first_left - 1) if first_left else ()
            mark(file, *places)
        self.put(f"tasks/{task}/rate_max", "max")
        self.started(self.write(f"tasks/{task}/control", "resume"), task)
        assert self.wait(task) == "done", self.read(f"tasks/{task}/error")
        assert self.read(f"tasks/{task}/progress") == f"{size} / {size}\n"
        units = sum(int(line.split()[5]) for line in self.read(f"tasks/{task}/threads").splitlines()[1:])
        assert units == size - int(before["done"]), f"done twice, or not at all: {units} of {size}, {before}"
        self.counts["resumed"] += 1
        return places


def errno_name(error: OSError) -> str:
    """The name under which a refused request is counted."""
    return "EOPNOTSUPP" if error.errno == errno.EOPNOTSUPP else errno.errorcode.get(error.errno or 0, str(error))


MARK: Final = 0x5C
"""A byte that no pattern here has."""


def mark(file: Path, *places: int) -> None:
    """Put MARK at ``places``, which must have pages."""
    if places:
        with file.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped:
            for place in places:
                mapped[place] = MARK


def expected(pattern: str, size: int, marks: tuple[int, ...] = ()) -> bytearray:
    """The contents of a file of ``size`` bytes after ``fill`` with ``pattern`` in hexadecimal digits."""
    unit = bytes.fromhex(pattern)
    content = bytearray((unit * (size // len(unit) + 1))[:size])
    for place in marks:
        content[place] = MARK
    return content


def crc32(file: Path) -> str:
    """The line that a checksum of the whole file has as its result, by zlib."""
    return f"crc32 {zlib.crc32(file.read_bytes()):08x}\n"


def pages(file: Path) -> int:
    """Bytes that the file has pages for."""
    return file.stat().st_blocks * 512
