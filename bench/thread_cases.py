"""The cases in which the search for the number of threads is judged, and the page that says how it does."""

from __future__ import annotations

import statistics
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.thread_search import CHUNK, Case, Load, Memory, Simulation, best_fixed

if TYPE_CHECKING:
    from collections.abc import Sequence

NOISES: Final = 5
"""Runs of each case with noise, each with other noise."""
GOOD_SPEED: Final = 0.95
GOOD_THREADS: Final = 1.25
"""The goals: at least this speed and at most so many threads, as shares of those of the best fixed number."""


def cases() -> list[Case]:
    """All that is judged."""
    found = []
    for cpus in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        for threads in (3, 12, 18, 64):
            chunks = 256 * max(min(threads, cpus), 8)
            for noise in (0.0, 0.2):
                name = f"{threads} threads' bandwidth" + (", noise" if noise else "")
                found.append(Case(name, cpus, (Memory(threads),), chunks, noise))
    for cpus in (4, 16, 64, 128, 256):
        for noise in (0.0, 0.2):
            suffix = ", noise" if noise else ""
            two, four = (Memory(12), Memory(12)), (Memory(12),) * 4
            found += [
                Case(f"two nodes{suffix}", cpus, two, 256 * 24, noise),
                Case(f"two nodes, uneven{suffix}", cpus, (Memory(18), Memory(6)), 256 * 24, noise, shares=(3, 1)),
                Case(f"four nodes{suffix}", cpus, four, 256 * 48, noise),
                Case(
                    f"four nodes, uneven{suffix}",
                    cpus,
                    (Memory(18), Memory(12), Memory(12), Memory(6)),
                    256 * 48,
                    noise,
                    shares=(3, 2, 2, 1),
                ),
            ]
    for cpus in (32, 128):
        for noise in (0.0, 0.2):
            suffix = ", noise" if noise else ""
            time = 512 * 16 / 16 * CHUNK  # about that of 8192 chunks on 16 threads
            found += [
                Case(f"bandwidth halves{suffix}", cpus, (Memory(16, ((time / 2, 8.0),)),), 6144, noise),
                Case(f"bandwidth doubles{suffix}", cpus, (Memory(8, ((time / 2, 16.0),)),), 6144, noise),
                Case(f"another task comes{suffix}", cpus, (Memory(16),), 6144, noise, (Load(0, 16, time / 2),)),
                Case(f"another task goes{suffix}", cpus, (Memory(16),), 6144, noise, (Load(0, 16, 0.0, time / 2),)),
                Case(
                    f"others come and go{suffix}",
                    cpus,
                    (Memory(24),),
                    8192,
                    noise,
                    (Load(0, 8, time / 4, time / 2), Load(0, 16, time * 0.6, time * 0.9)),
                ),
            ]
    return found


@dataclass(frozen=True)
class Row:
    """A case, the best fixed number, and runs of the search; their speeds are shares of the best fixed speed."""

    case: Case
    best: int
    speeds: tuple[float, ...]
    threads: tuple[float, ...]
    last: int

    @property
    def speed(self) -> float:
        return statistics.median(self.speeds)

    @property
    def share(self) -> float:
        """The threads as a share of the best fixed number."""
        return statistics.median(self.threads) / self.best

    @property
    def cells(self) -> tuple[str, ...]:
        worst = f"{min(self.speeds):.3f}", f"{max(self.threads) / self.best:.2f}"
        found = f"{self.speed:.3f}", worst[0], f"{statistics.median(self.threads):.1f}", f"{self.share:.2f}", worst[1]
        return self.case.name, str(self.case.cpus), str(self.best), *found, str(self.last)


def misses(rows: Sequence[Row]) -> str:
    """A sentence: which rows miss a goal."""
    slow = [row for row in rows if round(row.speed, 3) < GOOD_SPEED]
    many = [row for row in rows if round(row.share, 2) > GOOD_THREADS]
    named = "; ".join(f"{row.case.name} on {row.case.cpus} CPUs" for row in dict.fromkeys([*slow, *many]))
    runs = [(row, speed, threads) for row in rows for speed, threads in zip(row.speeds, row.threads, strict=True)]
    single = sum(speed < GOOD_SPEED or threads > GOOD_THREADS * row.best for row, speed, threads in runs)
    lowest = min(speed for _, speed, _ in runs)
    return (
        f"Goals: a speed of at least {GOOD_SPEED}, with at most {GOOD_THREADS} times the threads. Rows that miss one: "
        f"{named or 'none'}. Of the {len(runs)} single runs {single} miss one; the lowest speed of all is "
        f"{lowest:.3f}."
    )


def page(rows: Sequence[Row]) -> str:
    """The page in docs/."""
    header = (
        "memory serves",
        "CPUs",
        "best fixed",
        "speed",
        "least",
        "threads",
        "threads / best",
        "most",
        "at the end",
    )
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    table = "\n".join(lines + ["| " + " | ".join(row.cells) + " |" for row in rows])
    return f"""# The number of threads that is found

Written by `python -m bench.simulate --threads`, in virtual time: chunks of {CHUNK * 1000:.0f} ms that share the
bandwidth of their NUMA node's memory, which serves so many threads at full speed; each of two or four nodes serves 12,
or, uneven, from 6 to 18. *noise*: a chunk takes up to a fifth more or less. *best fixed* is the smallest fixed number
that is as quick as any, with its threads spread evenly over the nodes; so the search can be quicker on uneven ones.
*speed* is that of the search over that of the best fixed number, all of the searching included; *threads* is the mean
over the run; *at the end* is the number when nine tenths of the work are handed out. A row with noise has the medians
of {NOISES} runs; *least* and *most* are the worst speed and share of threads among them. 1024 chunks are 64 GiB; the
cases have {min(row.case.chunks for row in rows):,} to {max(row.case.chunks for row in rows):,}.

{textwrap.fill(misses(rows), 120)}

{table}
"""


def judge(chosen: Sequence[Case]) -> list[Row]:
    """A row for each case."""
    rows = []
    for case in chosen:
        number, best = best_fixed(case)
        runs = [Simulation(case, None, seed).run() for seed in range(1, NOISES + 1 if case.noise else 2)]
        speeds = tuple(best.seconds / run.seconds for run in runs)
        rows.append(Row(case, number, speeds, tuple(run.threads for run in runs), runs[0].last))
    return rows
