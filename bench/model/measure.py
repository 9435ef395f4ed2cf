"""The scaling of fallocate and clear: costs measured here, published series, and a model that joins them.

Usage: python -m bench.model [--smoke] [--rounds N] [--size BYTES] [what a reference server has] (as root: it reserves
huge pages). All its measurements are from this run. Writes docs/explanation/scaling.md, docs/plots/scaling.svg and
bench/results/model.json; four to five minutes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.environment import describe
from bench.harness import HERE, Section, Settings, settle, table
from bench.main_job import times
from bench.model.costs import CLEAR, CORE_CLEAR, CORE_FALLOCATE, FALLOCATE, LOCKED, PUNCH, START, UNMAP, measure_costs
from bench.model.fit import GIB, HUGE_PAGE, Costs, Server, Shape, predict, think_seconds
from bench.model.gil import GilCheck, check, handoff_seconds
from bench.model.page import document, plot
from bench.model.published import fit_all
from bench.model.tables import CORES, SIZES, Report
from bench.thread_peers import gil_time
from ktaskfs.units import format_size, human_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.harness import Series

ROOT: Final = HERE.parent
OPERATIONS: Final = ("fallocate", "clear")
MAIN_JOB: Final = 4 * GIB
"""Bytes of the main job, whose own result in bench/results may be from another machine."""
CHECKED_CHUNKS: Final = (2 << 20, 16 << 20, 64 << 20)


@dataclass(frozen=True)
class MainJob:
    """The figures of the main job for one operation, in seconds."""

    work: int
    ktaskfs: float
    alone: float
    """The C program with one thread."""
    both: float
    """The C program with two threads."""


def main_job(sections: Sequence[Section]) -> tuple[dict[str, MainJob], float]:
    """Returns both operations, and the seconds of a task with one page, from the results of ``bench.main_job``."""

    def median(section: Section, start: str, end: str = "") -> float:
        return next(s.median for s in section.series if s.name.startswith(start) and s.name.endswith(end))

    jobs = {}
    for name in OPERATIONS:
        part = next(each for each in sections if each.title.startswith(f"`{name}`"))
        assert part.work is not None
        jobs[name] = MainJob(
            part.work, median(part, "ktaskfs"), median(part, "C, ", " 1 thread"), median(part, "C, ", " 2 threads")
        )
    starting = next(each for each in sections if each.title == "Starting a task")
    return jobs, median(starting, "start to done")


def server_like(job: MainJob, knee: float) -> Server:
    """Returns a machine that has the measured times of one and two threads of C."""
    one, two = job.work / job.alone, job.work / job.both
    rest = max(two**-knee - (2 * one) ** -knee, (64 * two) ** -knee)  # two threads as fast as twice one: no limit seen
    return Server(cores=2, nodes=1, core_bandwidth=one, node_bandwidth=rest ** (-1 / knee))


def costs_from(series: dict[str, Series], task: float, handoff: float, page_lock: float | None) -> dict[str, Costs]:
    """Returns the costs of each operation: medians of the measurements."""
    lock = series[PUNCH].median if page_lock is None else page_lock
    return {
        name: Costs(
            chunk_gil=series[chunk].median,
            gil_handoff=handoff,
            page_lock=lock if name == "fallocate" else 0.0,
            page_unmap=series[UNMAP].median,
            thread_start=series[START].median,
            task=task,
        )
        for name, chunk in (("fallocate", FALLOCATE), ("clear", CLEAR))
    }


def check_gil(servers: dict[str, Server], costs: dict[str, Costs], knee: float, *, smoke: bool) -> list[GilCheck]:
    """Compares real threads with the model, with its predicted chunk times for the reference server."""
    empty = gil_time("ktask", 200 if smoke else 20_000) / 1e6
    found = []
    for name in OPERATIONS:
        for threads in (4, 8) if smoke else (64, 128, 256):
            for chunk in CHECKED_CHUNKS:
                shape = Shape(size=1 << 44, threads=threads, chunk=chunk, least_chunk=min(chunk, 16 << 20))
                think = think_seconds(servers[name], costs[name], shape, knee)
                least = 0.02 if smoke else 0.3
                if not smoke:
                    settle()
                found.append(check(name, chunk, threads, think, costs[name].chunk_gil, costs[name], empty, least))
    return found


def parse(name: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description="How far fallocate and clear scale")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default 7)")
    parser.add_argument("--size", type=parse_size, default=1 << 30, help="bytes of memory to measure on (default 1G)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, two rounds, nothing written: does it run?")
    parser.add_argument("--cores-per-node", type=int, default=64, help="of the reference server (default 64)")
    parser.add_argument(
        "--node-bandwidth",
        type=parse_size,
        default=150 * GIB,
        help="bytes a second zeroed in one node (default 150G: about half the peak of 8 channels of DDR5-4800)",
    )
    parser.add_argument("--core-fallocate", type=parse_size, help="bytes a second of one thread (default: as here)")
    parser.add_argument("--core-clear", type=parse_size, help="bytes a second of one thread (default: as here)")
    parser.add_argument("--page-lock-ns", type=int, help="serial nanoseconds a page (default: what freeing takes)")
    parser.add_argument(
        "--output", type=Path, help="directory with docs/explanation/ and bench/results/ (default: the project)"
    )
    return parser.parse_args(arguments)


def main(name: str, arguments: Sequence[str] | None = None) -> None:
    """Measure, fit, predict, and write the results."""
    options = parse(name, arguments)
    smoke = options.smoke
    output = options.output or (None if smoke else ROOT)
    size, rounds = (16 << 20, 2) if smoke else (options.size, options.rounds)
    environment = describe()
    jobs, task = main_job(times(Settings(rounds, (64 << 20) if smoke else MAIN_JOB, smoke=smoke)))
    series, whole = measure_costs(size, rounds, smoke=smoke)
    knee, fits = fit_all()
    bandwidths = {"fallocate": options.core_fallocate, "clear": options.core_clear}
    servers = {
        each: Server(
            cores=4 * options.cores_per_node,
            nodes=4,
            core_bandwidth=bandwidths[each] or size / whole[core].median,
            node_bandwidth=options.node_bandwidth,
        )
        for each, core in (("fallocate", CORE_FALLOCATE), ("clear", CORE_CLEAR))
    }
    service = series[FALLOCATE].median
    empty = gil_time("ktask", 200 if smoke else 20_000) / 1e6
    handoff = handoff_seconds(4 if smoke else 32, service, empty, 200 if smoke else 20_000)
    lock = None if options.page_lock_ns is None else options.page_lock_ns / 1e9
    costs = costs_from(series, task, handoff, lock)
    measured = [
        Section("What a chunk, a page and a thread cost (CPU time)", list(series.values()), unit="us"),
        Section("What one thread zeroes (CPU time)", list(whole.values()), work=size),
    ]
    again = {
        each: predict(
            server_like(job, knee), costs[each], Shape(size=job.work, threads=2, page=HUGE_PAGE), knee
        ).seconds
        for each, job in jobs.items()
    }
    command = f"python -m bench.{name} --rounds {rounds} --size {format_size(size)}"
    about = "; ".join(f"{key}: {value}" for key, value in environment.items())
    report = Report(
        about=f"{about}; size {human_size(size)}; command `{command}`",
        machine=f"{environment['machine']}, {environment['CPUs']} CPUs, Linux {environment['kernel']}",
        cores_per_node=options.cores_per_node,
        servers=servers,
        costs=costs,
        locked=series[LOCKED].median,
        knee=knee,
        fits=fits,
        checks=check_gil(servers, costs, knee, smoke=smoke),
        main_job=[(each, job.work, job.ktaskfs, again[each]) for each, job in jobs.items()],
        measured="\n\n".join(table(part) for part in measured),
    )
    page = document(report)
    print(f"{page}\n{report.about}.")
    if output is not None:
        plot(report, output / "docs" / "plots" / "scaling.svg")
        (output / "docs" / "explanation" / "scaling.md").write_text(page, encoding="utf-8")
        data = {"environment": environment, "command": command, "sections": [asdict(part) for part in measured]}
        data |= {each: getattr(report, each) for each in ("knee", "main_job")}
        data["predictions"] = [
            {"operation": each, "cores": cores, "bytes": length} | asdict(report.of(each, cores, length))
            for each in OPERATIONS
            for cores in CORES
            for length in SIZES
        ]
        data |= {each: [asdict(one) for one in getattr(report, each)] for each in ("fits", "checks")}
        data |= {
            each: {key: asdict(one) for key, one in getattr(report, each).items()} for each in ("servers", "costs")
        }
        (output / "bench" / "results" / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
