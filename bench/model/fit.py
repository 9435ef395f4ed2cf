"""The arithmetic of the scaling model: the time of a task by threads and machine. It measures nothing.

A chunk needs the GIL for a while (the framework's bookkeeping and the Python part of the chunk function), then
zeroes memory without it. Three resources are shared: the GIL of the worker process, the memory of the nodes, and
the kernel's locks, which every page passes one at a time. The result is docs/explanation/scaling.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from ktaskfs.ktask import chunk_size, helper_limit, nthreads

GIB: Final = 1 << 30
HUGE_PAGE: Final = 2 << 20
LEAST_CHUNK: Final = 16 << 20
LARGEST_CHUNK: Final = 64 << 20
"""The smallest and the largest chunk of fallocate and clear, by default."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A machine. Its bandwidths are bytes zeroed per second; the progress of a task counts the same bytes."""

    cores: int
    nodes: int
    core_bandwidth: float
    """The bandwidth of one thread alone."""
    node_bandwidth: float
    """The bandwidth of all threads together in one node's memory."""

    @property
    def memory(self) -> float:
        """The bandwidth of the whole machine."""
        return self.nodes * self.node_bandwidth


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds that do not depend on the machine's memory."""

    chunk_gil: float
    """For each chunk, with the GIL held."""
    gil_handoff: float
    """For each chunk whose thread must wait for the GIL: the time from its release until the thread has it."""
    page_lock: float
    """For each page, under kernel locks that all threads share."""
    page_unmap: float
    """For each page, at the end, by one thread: munmap(2) of the whole range."""
    thread_start: float
    """For each helper: the first thread starts it before it works itself."""
    task: float
    """From the write of the spec to the end of ``wait``, for an almost empty task."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The division of a task: ``workers`` processes, each with its own GIL, share the threads and the work."""

    size: int
    threads: int
    chunk: int = LARGEST_CHUNK
    least_chunk: int = LEAST_CHUNK
    page: int = HUGE_PAGE
    workers: int = 1

    @property
    def shipped_chunk(self) -> int:
        """The chunk size by the framework's rule."""
        return chunk_size(
            self.size // self.workers,
            self.least_chunk,
            max(self.threads // self.workers, 1),
            max_chunk_size=self.chunk,
            align=min(self.page, self.least_chunk),
        )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The predicted times of a task."""

    seconds: float
    work_seconds: float
    """The part of these seconds in which all threads work."""
    gil_share: float
    """The share of the working time in which a worker's GIL is held or being handed over; 0 to 1."""
    limit: str
    """The resource that one more thread would wait for: ``cores`` (none), ``memory``, ``GIL``, ``kernel locks``."""


def soft_minimum(limits: list[float], knee: float) -> float:
    """Returns the least of ``limits``, smoothed where two are close. A greater ``knee`` makes a sharper corner."""
    least = min(limits)
    return float(least * sum((least / limit) ** knee for limit in limits) ** (-1 / knee))


def gil_throughput(threads: int, think: float, service: float, handoff: float = 0.0) -> tuple[float, float]:
    """Returns the chunks per second of ``threads`` that work ``think`` seconds and then need the GIL for ``service``.

    Also returns the share of time in which the GIL is held or on its way to the next thread, 0 to 1. ``handoff`` is
    the additional time to wake a thread that waits for it. Exact mean value analysis of one queue and one delay
    (Reiser and Lavenberg 1980) with exponential times: a little pessimistic here, where times hardly vary.
    """
    effective, rate = service, 0.0
    for _ in range(60 if handoff else 1):
        rate = _closed_queue(threads, think, effective)
        if handoff:
            effective = (effective + service + handoff * min(rate * effective, 1.0)) / 2
    return rate, min(rate * effective, 1.0)


def _closed_queue(threads: int, think: float, service: float) -> float:
    waiting, rate = 0.0, 0.0
    for present in range(1, threads + 1):
        answer = service * (1 + waiting)
        rate = present / (think + answer)
        waiting = rate * answer
    return rate


def usable_threads(cores: int, size: int, cpu_percent: int = 80) -> int:
    """The threads of a task without its own limit: helpers on ``cpu_percent`` of the CPUs, and the first thread."""
    return min(nthreads(size, LEAST_CHUNK, cores, cores), helper_limit(cores, cpu_percent) + 1)


def think_seconds(server: Server, costs: Costs, shape: Shape, knee: float) -> float:
    """Returns the time of a chunk without the GIL while all threads work."""
    limits = [shape.threads * server.core_bandwidth, server.memory]
    limits += [shape.page / costs.page_lock] if costs.page_lock else []
    return shape.threads * shape.shipped_chunk / soft_minimum(limits, knee)


def predict(server: Server, costs: Costs, shape: Shape, knee: float) -> Prediction:
    """Predicts a task on ``server``. ``knee`` describes the saturation of memory, from the published figures."""
    chunk, workers = shape.shipped_chunk, shape.workers
    each = max(shape.threads // workers, 1)
    threads = each * workers
    think = think_seconds(server, costs, replace(shape, threads=threads), knee)
    rate, share = gil_throughput(each, think, costs.chunk_gil, costs.gil_handoff)
    work = shape.size / (rate * chunk * workers)
    limits = {"cores": threads * server.core_bandwidth, "memory": server.memory}
    if costs.page_lock:
        limits["kernel locks"] = shape.page / costs.page_lock
    if costs.chunk_gil:
        limits["GIL"] = workers * chunk / (costs.chunk_gil + costs.gil_handoff)
    tail = think * shape.least_chunk / chunk / 2
    unmap = shape.size / shape.page * costs.page_unmap / workers
    return Prediction(
        seconds=costs.task + each * costs.thread_start / 2 + work + tail + unmap,
        work_seconds=work,
        gil_share=share,
        limit=min(limits, key=lambda name: limits[name]),
    )


def speedup(server: Server, costs: Costs, shape: Shape, knee: float) -> float:
    """Returns the speed as a multiple of that with one thread."""
    alone = predict(server, costs, replace(shape, threads=1, workers=1), knee)
    return alone.seconds / predict(server, costs, shape, knee).seconds


def gil_threads(core_bandwidth: float, chunk: int, chunk_gil: float) -> float:
    """The number of threads that would keep the GIL held all the time if the memory had no limit."""
    return (chunk / core_bandwidth + chunk_gil) / chunk_gil


def memory_threads(server: Server) -> float:
    """The number of threads that saturate the memory of all nodes."""
    return server.memory / server.core_bandwidth
