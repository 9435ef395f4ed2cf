"""A batch of random writes in one process, each below a limit of CPU time, and what was found."""

from __future__ import annotations

import contextlib
import signal
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.fuzz.checks import Checker
from tests.fuzz.maker import Maker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

OURS: Final = tuple(f"{Path(__file__).parents[2] / name}/" for name in ("ktaskfs", "tests"))
"""Beginnings of the paths of this project's code."""
BATCH: Final = 1000
"""Writes."""
CPU_TIME_MAX: Final = 2.0
"""Seconds for one check, at least. The longest command takes some 20 ms; without a bound it would take minutes."""
TRIES_MAX: Final = 5000
"""To make a write shorter."""
SHORT: Final = 100
"""Bytes; of a shorter write every piece is tried."""


class TooSlow(BaseException):
    """A check takes longer than it may."""


class Fault(NamedTuple):
    """``kind`` has the error and the place, so that a fault is told once; ``data`` is the shortest write."""

    kind: str
    data: bytes


@dataclass
class Batch:
    """What was done; ``cpu`` of all, and ``slowest`` of one write, are in seconds of CPU time."""

    counts: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    slowest: float = 0.0
    cpu: float = 0.0


class Guard:
    """Raises TooSlow in a check in which two ticks of CPU time fall: a timer for each would cost as much as a check."""

    def __init__(self) -> None:
        self.number = 0
        """Of the check; the caller counts."""
        self._seen = -1

    def _tick(self, number: int, frame: FrameType | None) -> None:
        if self._seen == self.number:
            raise TooSlow(f"more than {CPU_TIME_MAX:g} s of CPU time")
        self._seen = self.number

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """For the body."""
        before = signal.signal(signal.SIGPROF, self._tick)
        signal.setitimer(signal.ITIMER_PROF, CPU_TIME_MAX, CPU_TIME_MAX)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)


def play(seed: str) -> Batch:
    """Make and check the writes of one seed; every fault is in the answer."""
    maker, checker, batch, guard = Maker(seed), Checker(), Batch(), Guard()
    clock, values = time.thread_time, 0
    start = clock()
    with guard.watching():
        for number in range(BATCH):
            guard.number += 1
            if number % 4 == 0:
                kind, text = maker.value()
                values += 1
                if fault := fault_of(lambda: checker.check_value(kind, text)):  # noqa: B023 -- called at once
                    batch.faults.append(Fault(fault, f"{kind.name}: {text}".encode("utf-8", "surrogateescape")))
            data = maker.write()
            begin = clock()
            fault = fault_of(lambda: checker.check(data))  # noqa: B023 -- called at once
            batch.slowest = max(batch.slowest, clock() - begin)
            if fault:
                batch.faults.append(Fault(fault, shortened(data, fault, checker, guard)))
    batch.cpu = clock() - start
    batch.counts = {"writes": BATCH, "accepted": checker.accepted, "refused": checker.refused, "values": values}
    return batch


def fault_of(check: Callable[[], None]) -> str:
    """What ``check`` raises, and where; nothing if all is well."""
    try:
        check()
    except (Exception, TooSlow) as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = next((each for each in reversed(frames) if each.filename.startswith(OURS)), frames[-1])
        return f"{type(error).__name__} in {place.name}: {str(error).partition(':')[0][:80]}"
    return ""


def shortened(data: bytes, fault: str, checker: Checker, guard: Guard) -> bytes:
    """A part of ``data`` with the same fault: pieces are left out, large ones first, as long as that is so."""
    size, tries = len(data) // 2, 0
    while size and tries < TRIES_MAX:
        at, step = 0, 1 if len(data) < SHORT else size
        while at < len(data) and tries < TRIES_MAX:
            tries += 1
            guard.number += 1
            shorter = data[:at] + data[at + size :]
            if fault_of(lambda: checker.check(shorter)) == fault:  # noqa: B023 -- called at once
                data = shorter
            else:
                at += step
        size = min(size - 1, len(data)) if len(data) < SHORT else size // 2
    return data
