"""The model's GIL, held against real threads: chunks that hold it as long as the real ones do, and then sleep.

Sleeping stands for zeroing: it releases the GIL and needs no CPU, so hundreds of threads can be tried on two CPUs.
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
"""Seconds of sleep beside which even a few threads ask for the GIL without a pause."""
TRIES: Final = 5
"""Runs of which the best counts."""


@dataclass(frozen=True)
class GilCheck:
    """One number of threads with one chunk: efficiencies are the ideal time over that of the run, or of the model."""

    operation: str
    chunk: int
    threads: int
    think: float
    """Seconds of a chunk without the GIL: what the sleep took with one thread, the best of TRIES runs."""
    share: float
    """Of the time, how much the GIL is held or handed over, by the model."""
    modelled: float
    measured: float


def loops_for(seconds: float) -> int:
    """Turns of an empty loop that hold the GIL for so long."""
    number = 200_000
    began = time.thread_time()
    _turn(number)
    return max(int(number * seconds / (time.thread_time() - began)), 0)


def _turn(number: int) -> None:
    for _ in itertools.repeat(None, number):
        pass


def run(threads: int, chunks: int, loops: int, sleep: float) -> float:
    """Seconds of a task of ``chunks`` such chunks on ``threads`` threads."""

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
    """What waiting for the GIL adds to each chunk when it is asked for all the time: the best of TRIES runs."""
    loops = loops_for(service - empty)
    return max(min(run(threads, chunks, loops, SHORT) for _ in range(TRIES)) / chunks - service, 0.0)


def check(
    operation: str, chunk: int, threads: int, think: float, service: float, costs: Costs, empty: float, least: float
) -> GilCheck:
    """Run and model it: ``service`` seconds with the GIL, ``empty`` of them the framework's.

    The best of TRIES runs of ``least`` seconds each: other work on the machine only ever adds to them.
    """
    loops = loops_for(service - empty)
    each = max(round(least / think), 4)
    alone = max(min(run(1, each, loops, think) for _ in range(TRIES)) / each - service, think)
    seconds = min(run(threads, each * threads, loops, think) for _ in range(TRIES))
    ideal = each * (alone + service)
    rate, share = gil_throughput(threads, alone, service, costs.gil_handoff)
    modelled = threads * costs.thread_start / 2 + each * threads / rate
    return GilCheck(operation, chunk, threads, alone, share, ideal / modelled, ideal / seconds)
