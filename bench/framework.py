"""The framework beside ThreadPoolExecutor, joblib and a pool of threads in C: cost of a chunk, efficiency.

Usage: python -m bench.framework [--smoke] [--rounds N] [--size BYTES] (bytes that each thread reads in all)
"""

from __future__ import annotations

import functools
import mmap
import os
import threading
import time
from typing import TYPE_CHECKING, Final

from bench.harness import Contender, Goal, Section, Series, Settings, alternate, main
from bench.peers import build, inner_times
from bench.thread_peers import PEERS, SPREADS, nothing
from ktaskfs.units import human_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.thread_peers import Work

C_POOL: Final = "C pool"
IDEAL: Final = "ideal"
READ_SIZES: Final = (64 << 10, 256 << 10, 1 << 20, 8 << 20)
SLEEPS: Final = ((1_000, 256), (20_000, 32))
"""Microseconds of a chunk, and chunks for each thread."""
SLEEPERS: Final = (1, 2, 16, 64)
READERS: Final = (1, 2)


class Sleeper:
    """Chunks that sleep, and so use no CPU."""

    def __init__(self, microseconds: int) -> None:
        self._seconds = microseconds / 1e6

    def __call__(self, start: int, end: int = 0, /) -> None:
        time.sleep(self._seconds)


class Reader:
    """Chunks of ``size`` bytes of /dev/zero, read by one system call into the buffer of their thread."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._zeros = os.open("/dev/zero", os.O_RDONLY)
        self._here = threading.local()

    def close(self) -> None:
        os.close(self._zeros)

    def __call__(self, start: int, end: int = 0, /) -> None:
        try:
            buffer = self._here.buffer
        except AttributeError:
            buffer = self._here.buffer = mmap.mmap(-1, self._size)
        if os.preadv(self._zeros, [buffer], 0) != self._size:
            raise OSError("/dev/zero gave less than was asked for")


def spread_seconds(peer: str, work: Work, chunks: int, threads: int) -> float:
    """From before the threads are made until they have ended."""
    began = time.perf_counter()
    SPREADS[peer](work, chunks, threads)
    return time.perf_counter() - began


def contenders(work: Work, kind: str, size: int, chunks: int, threads: int) -> Iterator[Contender]:
    """All peers, and the pool in C with chunks of the same ``kind`` and ``size``."""
    for peer in PEERS:
        yield Contender(_name(peer, threads), functools.partial(spread_seconds, peer, work, chunks, threads))
    pool = build("pool")
    yield Contender(_name(C_POOL, threads), lambda: inner_times(pool, chunks, threads, kind, size)[0])


def _name(peer: str, threads: int) -> str:
    return f"{peer}, {threads} thread{'s' * (threads > 1)}"


def handing_out(settings: Settings) -> list[Section]:
    """Chunks that do nothing: the time that handing out each one takes."""
    chunks = 500 if settings.smoke else 20_000
    pool = build("pool")

    def cpu(peer: str, threads: int) -> float:
        began = time.process_time()
        SPREADS[peer](nothing, chunks, threads)
        return (time.process_time() - began) / chunks

    def wall(peer: str, threads: int) -> float:
        return spread_seconds(peer, nothing, chunks, threads) / chunks

    def in_c(index: int, threads: int) -> float:
        return inner_times(pool, chunks, threads, "nothing", 0)[index] / chunks

    sections = []
    for index, (what, measure) in enumerate((("elapsed time", wall), ("CPU time", cpu))):
        all_of_them = []
        for threads in READERS:
            for peer in PEERS:
                all_of_them.append(Contender(_name(peer, threads), functools.partial(measure, peer, threads)))
            all_of_them.append(Contender(_name(C_POOL, threads), functools.partial(in_c, index, threads)))
        series = alternate(all_of_them, settings.rounds)
        goals = [Goal(_name("ktask", threads), _name("ktask", threads), None, most=15e-6) for threads in READERS]
        title = f"A chunk that does nothing: {what}, for each of {chunks}"
        note = "With one thread joblib does not hand out chunks: it only calls the function." if index == 0 else ""
        sections.append(Section(title, series, unit="us", goals=goals, note=note))
    return sections


def sleeping(settings: Settings, microseconds: int, each: int) -> Section:
    """Chunks that release the GIL and need no CPU, on more threads than there are CPUs."""
    counts = SLEEPERS[:2] if settings.smoke else SLEEPERS
    each = 4 if settings.smoke else each
    work = Sleeper(microseconds)
    series: list[Series] = [Series(IDEAL, [each * microseconds / 1e6])]
    for threads in counts:
        series += alternate(list(contenders(work, "sleep", microseconds, each * threads, threads)), settings.rounds)
    goals = []
    for threads in counts:
        for peer in (*PEERS, C_POOL):
            least = 0.95 if peer == "ktask" and microseconds >= 20_000 else None
            name = _name(peer, threads)
            goals.append(Goal(f"efficiency of {name}", IDEAL, name, least=least))
    title = f"Chunks that sleep for {microseconds // 1000} ms, {each} for each thread"
    note = "*ideal*: only the sleeps, one after the other. The kernel wakes a thread some 60 µs late, also in C."
    return Section(title, series, unit="ms", goals=goals, note=note)


def reading(settings: Settings, size: int) -> Section:
    """Chunks that release the GIL and need a CPU; the pool in C is the limit."""
    each = max(2, settings.size // size)
    work = Reader(size)
    series: list[Series] = []
    try:
        for threads in READERS:
            series += alternate(list(contenders(work, "zero", size, each * threads, threads)), settings.rounds)
    finally:
        work.close()
    goals = []
    for threads in READERS:
        for peer in PEERS:
            least = 0.95 if peer == "ktask" and size >= 8 << 20 else None
            name = _name(peer, threads)
            goals.append(Goal(f"speed of {name} against C", _name(C_POOL, threads), name, least=least))
    title = f"Chunks that read {human_size(size)} of /dev/zero, {each} for each thread"
    note = "The chunks of operations have several MiB; smaller ones show the cost of handing them out."
    return Section(title, series, unit="ms", goals=goals, note=note)


def measure(settings: Settings) -> list[Section]:
    sizes: Sequence[int] = READ_SIZES[-1:] if settings.smoke else READ_SIZES
    return [
        *handing_out(settings),
        *(sleeping(settings, microseconds, each) for microseconds, each in SLEEPS),
        *(reading(settings, size) for size in sizes),
    ]


if __name__ == "__main__":
    main("framework", "The framework beside other pools of threads", measure, size="2G")
