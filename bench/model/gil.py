"""Compares the model's GIL with real threads. Their chunks hold the GIL as long as real ones, and then sleep.

Sleep replaces zeroing: it releases the GIL and needs no CPU, so hundreds of threads fit on two CPUs.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.model.fit import gil_throughput
from bench.thread_peers import TwoNodes
from ktaskfs import ktask

if TYPE_CHECKING:
    from bench.model.fit import Costs

SHORT: Final = 0.0001
"""Seconds of a sleep so short that even a few threads ask for the GIL without a pause."""
TRIES: Final = 5
"""Number of runs; the best one counts."""


@dataclass(frozen=True)
class GilCheck:
    """A run with one number of threads and one chunk size. Efficiency: the ideal time over that of run or model."""

    operation: str
    chunk: int
    threads: int
    think: float
    """Seconds of a chunk without the GIL: the duration of the sleep with one thread, the best of TRIES runs."""
    share: float
    """The share of time in which the GIL is held or being handed over, by the model."""
    modelled: float
    measured: float


def loops_for(seconds: float) -> int:
    """Returns the number of turns of an empty loop that hold the GIL for this time."""
    number = 200_000
    began = time.thread_time()
    _turn(number)
    return max(int(number * seconds / (time.thread_time() - began)), 0)


def _turn(number: int) -> None:
    for _ in itertools.repeat(None, number):
        pass


def run(threads: int, chunks: int, loops: int, sleep: float) -> float:
    """Returns the seconds of a task of ``chunks`` such chunks on ``threads`` threads."""

    def chunk(start: int, end: int) -> None:
        _turn(loops)
        time.sleep(sleep)

    control = ktask.Control(
        chunk,
        min_chunk_size=1,
        max_chunk_size=1,
        max_threads=threads,
        threads="fixed",
        cpu_percent=100,
        nice=0,
        machine=TwoNodes(threads),
    )
    return ktask.run(0, chunks, control).seconds


def handoff_seconds(threads: int, service: float, empty: float, chunks: int) -> float:
    """Returns the seconds that a wait for a constantly wanted GIL adds to each chunk: the best of TRIES runs."""
    loops = loops_for(service - empty)
    return max(min(run(threads, chunks, loops, SHORT) for _ in range(TRIES)) / chunks - service, 0.0)


def check(
    operation: str, chunk: int, threads: int, think: float, service: float, costs: Costs, empty: float, least: float
) -> GilCheck:
    """Run and model chunks with ``service`` seconds under the GIL, of which the framework needs ``empty``.

    Takes the best of TRIES runs of ``least`` seconds each, because other work on the machine only makes them longer.
    """
    loops = loops_for(service - empty)
    each = max(round(least / think), 4)
    alone = max(min(run(1, each, loops, think) for _ in range(TRIES)) / each - service, think)
    seconds = min(run(threads, each * threads, loops, think) for _ in range(TRIES))
    ideal = each * (alone + service)
    rate, share = gil_throughput(threads, alone, service, costs.gil_handoff)
    modelled = threads * costs.thread_start / 2 + each * threads / rate
    return GilCheck(operation, chunk, threads, alone, share, ideal / modelled, ideal / seconds)
