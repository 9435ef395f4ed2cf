"""Efficiency of ktask's load balancing, beside ThreadPoolExecutor.map and joblib's threading backend.

    python -m bench.simulate             writes docs/explanation/balancing-simulation.md and its plot (about 40 minutes)
    python -m bench.simulate --smoke     a few seconds, writes nothing
    python -m bench.simulate --threads   writes docs/explanation/threads-simulation.md (about 20 minutes)

`python bench/simulate.py` does the same, from any directory.

The chunk functions sleep: they release the GIL as system calls do, and need no CPU, so that hundreds of threads can
be tried on two CPUs. They are woken when their time has come, not up to 50 us later, which the kernel may do.
Efficiency is the ideal makespan (the work spread evenly over the threads, but no less than the longest chunk) divided
by the measured one. All threads run at the same nice value. Needs joblib and matplotlib.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: its siblings and ktaskfs are found from the directory above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.thread_cases import cases, judge
from bench.thread_cases import page as page_of_search
from bench.thread_peers import PEERS, REMOTE, RUNNERS, SPREADS, gil_time, nothing
from bench.timer_slack import exact_sleep
from bench.virtual_time import CHUNK, CHUNKS_EACH, WORKLOADS, compare_rules, costs, ideal, in_order

if TYPE_CHECKING:
    from collections.abc import Sequence

DOCS = Path(__file__).parents[1] / "docs"
PAGES = DOCS / "explanation"
REPEATS = 12
REPEATS_OF_FEW = 36
"""With up to FEW threads peers differ by thousandths: more turns show which differences are real."""
FEW = 4


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

With one thread joblib is a loop that calls each chunk: no framework can be faster. ktask adds to each round the exact
account of the finished work and the check of the controls.

![efficiency](../plots/balancing.svg)

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
    parser.add_argument("--threads", action="store_true", help="only the search for the number of threads")
    options = parser.parse_args(arguments)
    if options.threads:
        text = page_of_search(judge(cases()[:2] if options.smoke else cases()))
        if options.smoke:
            print(text)
        else:
            (PAGES / "threads-simulation.md").write_text(text, encoding="utf-8")
        return
    smoke = options.smoke
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
        (PAGES / "balancing-simulation.md").write_text(page, encoding="utf-8")
        plot(points, DOCS / "plots" / "balancing.svg")


if __name__ == "__main__":
    main()
