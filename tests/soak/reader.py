"""One process of the long run that only looks: readers of streams, of metrics, of every file, who come and go.

    python -m tests.soak.reader MOUNT SEED SECONDS

As root, so that it may look at everybody's tasks, which end and are forgotten under its eyes.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import select
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.soak.client import PATIENCE, Client, Transitions

if TYPE_CHECKING:
    from collections.abc import Callable

GONE: Final = frozenset({errno.ENOENT, errno.ENODEV})
"""The error of a read of a removed task."""
PAUSE: Final = 0.2
"""Seconds between two looks, so that looking stays a small part of the load."""


class Reader(Client):
    """Reads one file after another; ``broken`` counts the errors."""

    def __init__(self, mount: Path, seed: int) -> None:
        super().__init__(mount, "reader", seed)
        self.broken = 0

    def work(self, seconds: float) -> None:
        looks: list[Callable[[], None]] = [
            self.follow_events,
            self.follow_a_task,
            self.poll,
            self.read_metrics,
            self.read_a_task,
            self.read_around,
        ]
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.broken < 10:
            look = self.random.choice(looks)
            faulthandler.dump_traceback_later(4 * PATIENCE, exit=True)
            try:
                look()
                self.counts[f"looked {look.__name__}"] += 1
            except OSError as error:
                if error.errno not in GONE:
                    self.broken += 1
                    traceback.print_exc()
                self.counts["looked at a task that went away"] += 1
            except (AssertionError, ValueError):
                self.broken += 1
                traceback.print_exc()
            time.sleep(PAUSE)
        faulthandler.cancel_dump_traceback_later()

    def task(self) -> Path:
        """A task of any user; ENOENT if there is none."""
        names = [name for name in os.listdir(self.mount / "tasks") if name != "control"]
        return self.mount / "tasks" / (self.random.choice(names) if names else "none")

    def follow_events(self) -> None:
        """For some seconds; every line is a change of state that may be, from where the task was."""
        transitions = Transitions()
        fd = os.open(self.mount / "events", os.O_RDONLY)
        try:
            end = time.monotonic() + self.random.uniform(0, 5)
            while time.monotonic() < end:
                with self.timed():
                    text = os.read(fd, 1 << 20)
                assert text, "events has ended"
                transitions.hear(text.decode())
        finally:
            os.close(fd)
        self.counts["events heard"] += transitions.seen

    def follow_a_task(self) -> None:
        """Some lines of ``wait``, and away, perhaps before the end."""
        fd = os.open(self.task() / "wait", os.O_RDONLY)
        try:
            for _ in range(self.random.randint(0, 3)):
                with self.timed():
                    if not os.read(fd, 4096):
                        break
        finally:
            os.close(fd)

    def poll(self) -> None:
        """Wait for a change of a task, or not so long."""
        fd = os.open(self.task() / self.random.choice(["state", "status", "stat", "progress"]), os.O_RDONLY)
        try:
            os.pread(fd, 4096, 0)
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            poll.poll(self.random.choice([0, 10, 1000]))
            os.pread(fd, 4096, 0)
        finally:
            os.close(fd)

    def read_metrics(self) -> None:
        assert self.read("metrics").endswith("\n")
        assert self.read("metrics.openmetrics").endswith("# EOF\n")

    def read_a_task(self) -> None:
        """Every file of a task once, without waiting for the streams."""
        task = self.task()
        for name in os.listdir(task):
            with self.timed():
                fd = os.open(task / name, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    os.read(fd, 1 << 20)
                except BlockingIOError:
                    assert name == "wait"
                finally:
                    os.close(fd)

    def read_around(self) -> None:
        """Files that are always there; some are closed unread."""
        for file in ("README", "version", "info/hugepages", "info/nodes", "operations/fill/parameters"):
            if self.random.random() < 0.5:
                assert self.read(file)
            else:
                os.close(os.open(self.mount / file, os.O_RDONLY))


def main() -> None:
    mount, seed, seconds = sys.argv[1:]
    reader = Reader(Path(mount), int(seed))
    reader.work(float(seconds))
    print(json.dumps({"broken": reader.broken, "slowest": reader.slowest, "tasks": 0, "counts": reader.counts}))


if __name__ == "__main__":
    main()
