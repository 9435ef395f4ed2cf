"""A user of the long run: files of memory, running tasks, and a pace."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import time
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tests.soak.client import (
    MARK,
    MIB,
    PATIENCE,
    Client,
    SpawnerDied,
    pages,
)
from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

S = TypeVar("S", bound="Callable[..., Any]")

BROKEN_MAX: Final = 10
"""After so many broken invariants there is nothing more to learn."""
PAGE_SIZE: Final = 2 * MIB
WHO: Final = ("root", "a", "b")
KINDS_OF_USE: Final = "operations"
"""The attribute of a scenario that ``uses`` sets."""
DOOR: Final = "door"
"""A file of the area: holders of a shared lock on it may use huge pages, which come and go."""


def uses(*operations: str) -> Callable[[S], S]:
    """Says which operations a scenario starts, as FAMILY/NAME. ``Actor.work`` checks that, unless it starts no task."""

    def mark_scenario(scenario: S) -> S:
        setattr(scenario, KINDS_OF_USE, operations)
        return scenario

    return mark_scenario


def operations_of(scenario: Callable[[], None]) -> tuple[str, ...]:
    """What ``uses`` has said of it."""
    found: tuple[str, ...] = getattr(scenario, KINDS_OF_USE, ())
    return found


@dataclass(frozen=True)
class Place:
    """Where files of memory can be made, and the size of their pages."""

    directory: Path
    page: int


class Actor(Client, ABC):
    """``area`` has ``tmpfs``, ``huge`` and ``disk``, each with a directory for each of WHO, closed to the others."""

    def __init__(self, mount: Path, area: Path, who: str, number: int, seed: int) -> None:
        super().__init__(mount, f"{who}{number}", seed)
        self.area = area
        self.who = who
        self.first = number == 0
        self.broken = 0
        self.directory = area / "tmpfs" / who

    @abstractmethod
    def scenarios(self) -> list[Callable[[], None]]:
        """The possible scenarios; one that is listed twice is played twice as often."""

    def work(self, seconds: float, pace: float) -> None:
        """Play scenarios for ``seconds``, starting at most ``pace`` tasks a second."""
        begin = time.monotonic()
        while (now := time.monotonic()) < begin + seconds and self.broken < BROKEN_MAX:
            time.sleep(max(0.0, min(begin + self.tasks / pace, begin + seconds) - now))
            scenario = self.random.choice(self.scenarios())
            faulthandler.dump_traceback_later(4 * PATIENCE, exit=True)  # a request that hangs blocks signals
            self.words.clear()
            try:
                scenario()
                missing = {each.rpartition("/")[2] for each in operations_of(scenario)} - self.words
                assert not missing or not self.words, f"{scenario.__name__} has not started {missing}"
                self.counts[f"played {scenario.__name__}"] += 1
            except SpawnerDied:
                self.counts["given up, the spawner had died"] += 1
            except (AssertionError, OSError, ValueError):
                self.broken += 1
                traceback.print_exc()
        faulthandler.cancel_dump_traceback_later()

    # ---- where ----

    @contextlib.contextmanager
    def place(self) -> Iterator[Place]:
        """tmpfs, or hugetlbfs if there are huge pages now; they stay until the end of the body."""
        with (self.area / DOOR).open() as door:
            try:
                fcntl.flock(door, fcntl.LOCK_SH | fcntl.LOCK_NB)
                huge = door.read() == "open" and self.random.random() < 0.6
            except BlockingIOError:
                huge = False
            if huge:
                self.counts["played on huge pages"] += 1
                yield Place(self.area / "huge" / self.who, PAGE_SIZE)
            else:
                yield Place(self.directory, 4096)

    @contextlib.contextmanager
    def file(self, place: Place, suffix: str = "") -> Iterator[tuple[Path, int]]:
        """The name of a file that does not exist yet, and a size for it; it is removed at the end."""
        path = place.directory / (self.new_name() + suffix)
        size = self.random.randint(1, 3) * PAGE_SIZE if place.page == PAGE_SIZE else self.random.randint(1, 2048) * 4096
        try:
            yield path, size
        finally:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def allocated(self, extra: str = "") -> Iterator[tuple[Path, int, Place]]:
        """A file with all its pages, by fallocate."""
        with self.place() as place, self.file(place) as (path, size):
            assert self.run(f"fallocate path={path} length={size} {extra}{self.limits()}") == ""
            assert (pages(path), path.stat().st_size) == (size, size)
            yield path, size, place

    def limits(self) -> str:
        words = ["", f" max_threads={self.random.randint(1, 4)}", " chunk=64K", " rate_max=512M", " nice=5"]
        return "".join(self.random.sample(words, 2))

    def pattern(self) -> str:
        return bytes(byte for byte in self.random.randbytes(self.random.randint(1, 64)) if byte != MARK).hex() or "a5"

    @contextlib.contextmanager
    def slow(self, operation: str = "fill", extra: str = "") -> Iterator[tuple[str, Path, int, str]]:
        """A task at work that needs about two seconds, and has done something: its name, file, size, pattern."""
        pattern = self.pattern()
        with self.place() as place, self.file(place) as (path, size):
            if size < 4 * place.page:
                size = 4 * place.page
            what = f"path={path} length={size} chunk={place.page} rate_max={size // 2}{extra}"
            if operation == "fill":
                self.run(f"fallocate path={path} length={size}")
                what += f" pattern={pattern}"
            name = self.start(f"{operation} {what}")
            until(lambda: self.begun(name), "something is done", deadline=2 * PATIENCE)
            yield name, path, size, pattern
            self.forget(name)

    def begun(self, task: str) -> bool:
        stat = self.stat(task)
        return stat["done"] != "0" or stat["state"] not in ("starting", "running")
