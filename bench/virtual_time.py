"""The workloads of the simulation, and the time of a schedule of their chunks in exact virtual time.

No thread runs: starting a thread, handing out a chunk and waking up cost nothing.
"""

from __future__ import annotations

import heapq
import random
from typing import TYPE_CHECKING, Final

from ktaskfs import ktask
from ktaskfs.ktask.arithmetic import tail_chunk_size

if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNK: Final = 0.020
"""Mean seconds of one chunk."""
CHUNKS_EACH: Final = 64
"""Chunks for each thread: 1.3 seconds of work, so that starting the threads counts little."""
WORKLOADS: Final = ("constant", "uniform", "skewed", "nodes")


def costs(workload: str, chunks: int) -> list[float]:
    """The seconds of each chunk, CHUNK on average, the same at each call."""
    rng = random.Random(2017)
    if workload == "uniform":
        return [rng.uniform(0.5, 1.5) * CHUNK for _ in range(chunks)]
    if workload == "skewed":  # one chunk in ten takes as long as four of the others
        return [(4 if rng.random() < 0.1 else 1) * CHUNK / 1.3 for _ in range(chunks)]
    return [CHUNK] * chunks


def ideal(seconds: Sequence[float], threads: int) -> float:
    """The makespan that no schedule of these chunks can beat."""
    return max(sum(seconds) / threads, *seconds)


def in_order(workload: str, threads: int) -> float:
    """The efficiency of handing out the chunks in order to the threads that are free."""
    seconds = costs(workload, threads * CHUNKS_EACH)
    free = [0.0] * threads
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return ideal(seconds, threads) / max(free)


def model_makespan(workload: str, units: int, threads: int, *, fixed: bool) -> float:
    """The makespan of ``units`` units in chunks by the framework's own rule."""
    seconds = costs(workload, units)
    chunk = ktask.chunk_size(units, 1, threads)
    free = [0.0] * threads
    done = 0
    while done < units:
        size = chunk if fixed else tail_chunk_size(units - done, chunk, 1, threads)
        heapq.heapreplace(free, free[0] + sum(seconds[done : done + size]))
        done += size
    return max(free)


def compare_rules(threads: Sequence[int]) -> list[tuple[object, ...]]:
    """Rows that compare the efficiencies of both chunk rules in virtual time."""
    rows: list[tuple[object, ...]] = []
    for workload in ("uniform", "skewed"):
        for count in threads:
            units = 256 * count
            best = ideal(costs(workload, units), count)
            both = (best / model_makespan(workload, units, count, fixed=fixed) for fixed in (True, False))
            rows.append((workload, count, *(f"{value:.3f}" for value in both)))
    return rows
