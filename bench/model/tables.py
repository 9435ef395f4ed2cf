"""The tables of docs/explanation/scaling.md, from the inputs and predictions of the scaling model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from bench.model.fit import (
    GIB,
    HUGE_PAGE,
    Costs,
    Prediction,
    Server,
    Shape,
    gil_threads,
    memory_threads,
    predict,
    speedup,
    usable_threads,
)
from bench.model.published import THREADS, Fit
from bench.simulate import table as rows_table
from ktaskfs.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.model.gil import GilCheck

TIB: Final = 1 << 40
CORES: Final = (8, 16, 32, 64, 128, 256)
SIZES: Final = (TIB, 4 * TIB, 16 * TIB)
CHUNKS: Final = (2 << 20, 16 << 20, 64 << 20)
LINES: Final = {"fallocate": "allocate and zero", "clear": "zero in place"}


@dataclass(frozen=True)
class Report:
    """The contents of the page. ``servers`` has the largest reference server for each operation."""

    about: str
    machine: str
    """Its processors and kernel, in short."""
    cores_per_node: int
    servers: dict[str, Server]
    costs: dict[str, Costs]
    locked: float
    """Seconds of a chunk under the scheduler's lock."""
    knee: float
    fits: list[Fit]
    checks: list[GilCheck]
    main_job: list[tuple[str, int, float, float]]
    """Operation, bytes, and the seconds with two threads: measured, and by the model."""
    measured: str

    def server(self, operation: str, cores: int) -> Server:
        """Returns the reference server with this number of cores."""
        return replace(self.servers[operation], cores=cores, nodes=-(-cores // self.cores_per_node))

    def of(self, operation: str, cores: int, size: int, threads: int | None = None) -> Prediction:
        """Predicts a task with default settings and all the threads that it may have."""
        shape = Shape(size=size, threads=threads or usable_threads(cores, size))
        return predict(self.server(operation, cores), self.costs[operation], shape, self.knee)


def short(seconds: float) -> str:
    """Returns a time for people, such as 3.1 s."""
    if seconds >= 120:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"


def summary(report: Report, operation: str) -> str:
    """Returns a table with a row for each number of cores."""
    rows = []
    for cores in CORES:
        found = [report.of(operation, cores, size) for size in SIZES]
        threads = usable_threads(cores, SIZES[-1])
        faster = report.of(operation, cores, SIZES[-1], 1).seconds / found[-1].seconds
        server = report.server(operation, cores)
        times = [short(each.seconds) for each in found]
        default = short(report.of(operation, cores, SIZES[0], 4).seconds)
        share = f"{found[-1].gil_share:.0%}"
        rows.append((cores, server.nodes, default, threads, *times, f"{faster:.1f}x", share, found[-1].limit))
    header = ("cores", "nodes", "1 TiB, 4 threads", "threads", "1 TiB", "4 TiB", "16 TiB", "speedup", "GIL", "limit")
    return rows_table(header, rows)


def stops(report: Report) -> str:
    """Returns a table with the number of threads that exhausts each resource."""
    rows = []
    for operation, server in report.servers.items():
        costs = report.costs[operation]
        held = costs.chunk_gil + costs.gil_handoff
        gil = [f"{gil_threads(server.core_bandwidth, chunk, held):.0f}" for chunk in CHUNKS]
        lock = f"{HUGE_PAGE / server.memory * 1e6:.1f} µs" if costs.page_lock else "none taken"
        one = memory_threads(replace(server, nodes=1))
        rows.append((f"`{operation}`", f"{one:.0f}", f"{memory_threads(server):.0f}", *gil, lock))
    header = ("", "memory, each node", f"memory, {server.nodes} nodes", *(f"GIL, {format_size(c)}" for c in CHUNKS))
    return rows_table((*header, "locks: time for a page"), rows)


def published(report: Report) -> str:
    """Returns a table of the series' speedups, published and by the model."""
    rows: list[tuple[object, ...]] = []
    for fit in report.fits:
        of = fit.published
        faster = [f"{each:.2f}x" for each in of.speedups[1:]]
        rates = (f"{fit.thread / GIB:.1f}", f"{fit.together / GIB:.0f}")
        rows.append((of.operation, of.machine, of.gib, *faster, *rates, f"{fit.error:.1%}"))
    for operation in report.servers:
        server, costs = report.server(operation, CORES[-1]), report.costs[operation]
        ours = [f"{speedup(server, costs, Shape(size=TIB, threads=t), report.knee):.2f}x" for t in THREADS[1:]]
        rates = (f"{server.core_bandwidth / GIB:.1f}", f"{server.memory / GIB:.0f}")
        rows.append((f"**{operation}, ktaskfs by the model**", "reference, 256 cores", 1024, *ours, *rates, ""))
    threads = [f"{count} threads" for count in THREADS[1:]]
    return rows_table(("", "machine", "GiB", *threads, "GiB/s a thread", "together", "residual"), rows)


def variants(report: Report) -> str:
    """Returns a table of possible changes and their effects on the largest server with the largest file."""
    cores, size = CORES[-1], SIZES[-1]
    plain = Shape(size=size, threads=usable_threads(cores, size))
    locked = min((fit for fit in report.fits if fit.published.operation == "fallocate"), key=lambda fit: fit.most)
    quickest = max(server.core_bandwidth for server in report.servers.values())

    def row(
        label: str,
        *,
        server: Callable[[Server], Server] = lambda same: same,
        costs: Callable[[Costs], Costs] = lambda same: same,
        shape: Callable[[str], Shape] = lambda operation: plain,
        only: str = "",
    ) -> tuple[str, ...]:
        times = []
        for each in report.servers:
            if only in ("", each):
                changed = server(report.server(each, cores)), costs(report.costs[each])
                found = predict(*changed, shape(each), report.knee)
                times.append(f"{short(found.seconds)} (GIL {found.gil_share:.0%})")
            else:
                times.append("the same")
        return label, *times

    def cut(operation: str, chunk: int) -> Shape:
        return replace(plain, chunk=chunk, least_chunk=chunk)

    def gigantic(operation: str) -> Shape:
        """Returns the shape with gigantic pages. Only clear splits such a page into chunks."""
        return replace(plain if operation == "clear" else cut(operation, 1 << 30), page=1 << 30)

    nodes = report.server("fallocate", cores).nodes
    rows = [
        row("as it is shipped: chunks of 64M"),
        row("chunks of 2M only (no spec does this to a large file)", shape=lambda name: cut(name, 2 << 20)),
        row("`chunk=256M`", shape=lambda name: cut(name, 256 << 20)),
        row(
            "Python without a GIL: the scheduler's lock remains",
            costs=lambda old: replace(old, chunk_gil=report.locked),
        ),
        row(f"a worker process for each of the {nodes} nodes", shape=lambda name: replace(plain, workers=nodes)),
        row("pages of 1 GiB", shape=gigantic),
        row(
            "a kernel that clears a huge page in one go",
            server=lambda old: replace(old, core_bandwidth=quickest),
            only="fallocate",
        ),
        row("memory twice as fast", server=lambda old: replace(old, node_bandwidth=2 * old.node_bandwidth)),
        row(
            f"**kernel locks as in the worst published fallocate** (never more than {locked.most:.1f}x)",
            server=lambda old: replace(old, nodes=1, node_bandwidth=locked.most * old.core_bandwidth),
            only="fallocate",
        ),
    ]
    return rows_table((f"{cores} cores, {format_size(size)}", *(f"`{each}`" for each in report.servers)), rows)


def checks(report: Report) -> str:
    """Returns a table of the model's GIL and real threads."""
    header = ("as", "chunk", "threads", "chunk's time", "GIL held", "efficiency, model", "measured")
    rows = [
        (
            one.operation,
            format_size(one.chunk),
            one.threads,
            f"{one.think * 1e3:.2f} ms",
            f"{one.share:.0%}",
            f"{one.modelled:.3f}",
            f"{one.measured:.3f}",
        )
        for one in report.checks
    ]
    return rows_table(header, rows)


def again(report: Report) -> str:
    """Returns a table of the main job, measured and predicted from the C programs of the same run."""
    rows = [
        (f"`{name}`, {format_size(work)}, 2 threads", f"{seen:.3f} s", f"{made:.3f} s", f"{seen / made - 1:+.0%}")
        for name, work, seen, made in report.main_job
    ]
    return rows_table(("", "ktaskfs, measured", "model", "residual"), rows)
