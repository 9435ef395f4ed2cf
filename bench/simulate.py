"""Efficiency of ktask's load balancing, beside ThreadPoolExecutor.map and joblib's threading backend.

    python -m bench.simulate             writes docs/ktask-simulation.md and .svg (about 40 minutes)
    python -m bench.simulate --smoke     a few seconds, writes nothing

The chunk functions sleep: they release the GIL as system calls do, and need no CPU, so that hundreds of threads can
be tried on two CPUs. They are woken when their time has come, not up to 50 us later, which the kernel may do.
Efficiency is the ideal makespan (the work spread evenly over the threads, but no less than the longest chunk) divided
by the measured one. All threads run at the same nice value. Needs joblib and matplotlib.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import os
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bench.timer_slack import exact_sleep
from bench.virtual_time import CHUNK, CHUNKS_EACH, WORKLOADS, compare_rules, costs, ideal, in_order
from ktaskfs import ktask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DOCS = Path(__file__).parents[1] / "docs"
REPEATS = 12
REPEATS_OF_FEW = 36
"""With up to FEW threads peers differ by thousandths: more turns show which differences are real."""
FEW = 4
REMOTE = 3.0
"""How many times longer a chunk takes on a thread of the wrong node."""
PEERS = ("ktask", "ThreadPoolExecutor", "joblib")


class TwoNodes(ktask.LinuxMachine):
    """A machine of ``cpus`` CPUs on two nodes, which knows where it has put each thread."""

    def __init__(self, cpus: int) -> None:
        super().__init__()
        self._count = cpus
        self._here = threading.local()

    def cpus(self) -> int:
        return self._count

    def node_cpus(self, nid: int) -> frozenset[int]:
        return frozenset(range(nid, self._count, 2))

    def placement(self) -> ktask.Placement:
        return ktask.Placement(frozenset(range(self._count)), (0, frozenset()))

    def place(self, where: ktask.Placement) -> None:
        self._here.nid = min(where.policy[1], default=0) if where.policy else 0

    def nid(self) -> int:
        """The node of the calling thread."""
        return getattr(self._here, "nid", 0)


def doze(seconds: float) -> None:
    """The work of a chunk."""
    time.sleep(seconds)


class Sleeper:
    """The work, the same for all peers: a call does one chunk, and takes longer in a thread of the wrong node."""

    def __init__(self, workload: str, chunks: int, nid: Callable[[], int]) -> None:
        """``nid`` returns the node of the calling thread."""
        self._seconds = costs(workload, chunks)
        self._half = chunks // 2 if workload == "nodes" else None
        self._nid = nid

    def __call__(self, start: int, end: int = 0, /) -> None:
        doze(self._seconds[start] * (1 if self._half is None else self._penalty(start)))

    def _penalty(self, index: int) -> float:
        return 1 if self._nid() == (index >= (self._half or 0)) else REMOTE


class Spread:
    """Spreads a peer's threads over the nodes as they come: returns the node of the calling thread."""

    def __init__(self) -> None:
        self._here = threading.local()
        self._lock = threading.Lock()  # guards _threads
        self._threads = 0

    def __call__(self) -> int:
        if not hasattr(self._here, "nid"):
            with self._lock:
                self._here.nid = self._threads % 2
                self._threads += 1
        return int(self._here.nid)


class Work(Protocol):
    """Does a chunk of one unit: ktask passes its start and end, a peer only its index."""

    def __call__(self, start: int, end: int = 0, /) -> object: ...


def control(work: Work, threads: int, machine: ktask.LinuxMachine) -> ktask.Control:
    """Chunks of one unit on so many threads that all run at the same nice value, however few CPUs there are."""
    return ktask.Control(
        work,
        min_chunk_size=1,
        max_chunk_size=1,
        max_threads=threads,
        cpu_percent=100,
        nice=0,
        machine=machine,
    )


def spread_ktask(work: Work, chunks: int, threads: int) -> None:
    ktask.run(0, chunks, control(work, threads, TwoNodes(threads)))


def spread_executor(work: Work, chunks: int, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, range(chunks)):
            pass


def spread_joblib(work: Work, chunks: int, threads: int) -> None:
    """With one thread joblib makes no thread, and calls ``work`` in the calling one."""
    import joblib

    call = joblib.delayed(work)
    joblib.Parallel(n_jobs=threads, backend="threading", batch_size=1)(call(index) for index in range(chunks))


SPREADS: dict[str, Callable[[Work, int, int], None]] = dict(
    zip(PEERS, (spread_ktask, spread_executor, spread_joblib), strict=True)
)
"""Each peer's way to do ``work`` for so many chunks on so many threads; returns when all is done."""


def run_ktask(workload: str, chunks: int, threads: int) -> float:
    machine = TwoNodes(threads)
    sleeper = Sleeper(workload, chunks, machine.nid)
    half = chunks // 2
    nodes = [ktask.Node(0, half, 0), ktask.Node(half, chunks - half, 1)]
    began = time.perf_counter()
    ktask.run_numa(nodes if workload == "nodes" else [ktask.Node(0, chunks)], control(sleeper, threads, machine))
    return time.perf_counter() - began


def run_peer(peer: str, workload: str, chunks: int, threads: int) -> float:
    sleeper = Sleeper(workload, chunks, Spread())
    began = time.perf_counter()
    SPREADS[peer](sleeper, chunks, threads)
    return time.perf_counter() - began


RUNNERS: dict[str, Callable[[str, int, int], float]] = {
    peer: run_ktask if peer == "ktask" else functools.partial(run_peer, peer) for peer in PEERS
}


@dataclass(frozen=True, slots=True)
class Point:
    """The efficiencies of one peer at one workload and number of threads, run by run."""

    workload: str
    threads: int
    peer: str
    values: tuple[float, ...]

    @property
    def efficiency(self) -> float:
        return statistics.median(self.values)


def measure(workload: str, threads: int, chunks_each: int, repeats: int) -> list[Point]:
    """All peers in turns, so that a disturbance hits all alike; each runs as often before each other as after it."""
    chunks = threads * chunks_each
    best = ideal(costs(workload, chunks), threads)
    seen: dict[str, list[float]] = {peer: [] for peer in PEERS}
    for order in itertools.islice(itertools.cycle(itertools.permutations(PEERS)), repeats):
        for peer in order:
            seen[peer].append(best / RUNNERS[peer](workload, chunks, threads))
    return [Point(workload, threads, peer, tuple(values)) for peer, values in seen.items()]


def chance(better: int, turns: int) -> float:
    """The probability that one of two equal peers is the better one in at least ``better`` of ``turns`` turns."""
    ways: int = sum(math.comb(turns, each) for each in range(better, turns + 1))
    return ways / (1 << turns)


def behind(points: Sequence[Point]) -> str:
    """A list of the rows in which a peer is better than ktask by at least half of the table's last digit.

    Peers are compared turn by turn: a disturbance of the machine that lasts longer than a turn does not count.
    """
    ours = {(point.workload, point.threads): point for point in points if point.peer == "ktask"}
    rows = []
    for point in points:
        mine = ours[point.workload, point.threads]
        lacks = [theirs - own for theirs, own in zip(point.values, mine.values, strict=True)]
        lack = statistics.median(lacks)
        if max(lack, point.efficiency - mine.efficiency) >= 0.0005:
            better = sum(each > 0 for each in lacks)
            rows.append(
                f"- {point.workload}, threads {point.threads}: {lack:.4f} less than {point.peer}, which was better in "
                f"{better} of {len(lacks)} turns, with differences from {min(lacks):.4f} to {max(lacks):.4f} "
                f"(one of two equal peers is better so often with a chance of {chance(better, len(lacks)):.2f})"
            )
    return "\n".join(rows or ["- none"])


def nothing(start: int, end: int = 0, /) -> None:
    """The work of a chunk, if only the cost of handing it out is measured."""


def gil_time(peer: str, chunks: int = 20_000) -> float:
    """CPU microseconds for each chunk that does nothing, with one thread, which waits for no other.

    With two threads for joblib, which hands nothing out to one.
    """
    began = time.process_time()
    SPREADS[peer](nothing, chunks, 2 if peer == "joblib" else 1)
    return (time.process_time() - began) / chunks * 1e6


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def report(points: Sequence[Point], overhead: dict[str, float], model: Sequence[Sequence[object]]) -> str:
    """The page in docs/."""
    by_place: dict[tuple[str, int], dict[str, float]] = {}
    for point in points:
        by_place.setdefault((point.workload, point.threads), {})[point.peer] = point.efficiency
    rows = [
        (workload, threads, f"{in_order(workload, threads):.3f}", *(f"{values[peer]:.3f}" for peer in PEERS))
        for (workload, threads), values in by_place.items()
    ]
    return f"""# ktask: efficiency of the load balancing

Written by `python -m bench.simulate`; {os.cpu_count()} CPUs, Python {sys.version.split()[0]}.

## Beside its peers

Chunks of {CHUNK * 1000:.0f} ms on average that sleep, {CHUNKS_EACH} for each thread, the same for all. 1.000 would be
the ideal makespan, which needs a schedule that knows all costs beforehand; *in order* hands out the chunks in order, in
virtual time, where starting a thread and waking up cost nothing. Medians of {REPEATS_OF_FEW}
runs with up to {FEW} threads, of {REPEATS} with more.
*constant*: all chunks alike. *uniform*: 0.5 to 1.5 times the mean. *skewed*: one in ten takes four times as long as the
others. *nodes*: two NUMA nodes, {REMOTE:.0f} times as long on the wrong one. Sleeping threads are woken at once,
without timer slack.

Rows in which a peer is better than ktask by 0.0005, half of the last digit below, or more:

{behind(points)}

With one thread joblib hands nothing out: it is a loop that calls each chunk, the limit for all. To each round ktask
adds the exact account of what is done and the check of the controls.

![efficiency](ktask-simulation.svg)

{table(("workload", "threads", "in order", *PEERS), rows)}

## Time for one chunk that does nothing

CPU microseconds, which is time with the GIL held.

{table(PEERS, [[f"{overhead[peer]:.1f}" for peer in PEERS]])}

## The shrinking last chunks against the framework's fixed chunk

Exact virtual time, no thread is run: 256 units for each thread, which the framework makes into four chunks a thread and
more small ones at the end. The shrinking rule is the default; `fixed_chunks=True` is the kernel's.

{table(("workload", "threads", "fixed", "shrinking"), model)}
"""


def plot(points: Sequence[Point], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ktask"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(WORKLOADS), figsize=(14, 3.6), sharey=True)
    for axis, workload in zip(axes, WORKLOADS, strict=True):
        for peer in PEERS:
            mine = [point for point in points if (point.workload, point.peer) == (workload, peer)]
            axis.plot([point.threads for point in mine], [point.efficiency for point in mine], marker=".", label=peer)
        axis.set_xscale("log", base=2)
        axis.set_ylim(0, 1.05)
        axis.set_title(workload)
        axis.set_xlabel("threads")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ideal / measured time")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Efficiency of ktask beside its peers; writes into docs/.")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, writes nothing")
    smoke = parser.parse_args(arguments).smoke
    if not smoke and find_spec("matplotlib") is None:
        parser.error("matplotlib, which draws the plot, is not installed")
    counts = (1, 4) if smoke else (1, 4, 16, 64, 128, 256, 512)
    points: list[Point] = []
    for peer in PEERS:  # each peer imports its modules the first time
        SPREADS[peer](nothing, 4, 2)
    with exact_sleep():
        for workload in WORKLOADS:
            for threads in counts:
                repeats = 1 if smoke else REPEATS_OF_FEW if threads <= FEW else REPEATS
                new = measure(workload, threads, 4 if smoke else CHUNKS_EACH, repeats)
                print(workload, threads, *(f"{point.peer} {point.efficiency:.4f}" for point in new), flush=True)
                points += new
    overhead = {peer: gil_time(peer, 100 if smoke else 20_000) for peer in PEERS}
    page = report(points, overhead, compare_rules(counts))
    if smoke:
        print(page)
    else:
        (DOCS / "ktask-simulation.md").write_text(page, encoding="utf-8")
        plot(points, DOCS / "ktask-simulation.svg")


if __name__ == "__main__":
    main()
