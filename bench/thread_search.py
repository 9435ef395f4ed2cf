"""The search for the number of threads, in virtual time: chunks that share the bandwidth of their NUMA node's memory.

No thread runs and nothing waits: the framework's own Work, TaskThread and Finder run in the time of the model. The best
fixed number is found by trying all.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Final

from ktaskfs.ktask.arithmetic import chunk_size, tail_chunk_size
from ktaskfs.ktask.finder import Finder
from ktaskfs.ktask.task_thread import TaskThread
from ktaskfs.ktask.work import Work
from ktaskfs.span import NO_NODE, Node

if TYPE_CHECKING:
    from collections.abc import Iterable

CHUNK: Final = 0.008
"""Seconds of a chunk on a thread that waits for no memory: 64 MiB at 8 GiB/s."""
UNITS: Final = 16
"""Units of the largest chunk, 64 MiB: a unit is 4 MiB."""
START: Final = 0.0002
"""Seconds until a new thread takes its first chunk."""
ARITHMETIC: Final = 4
"""Threads to begin with on each NUMA node."""


@dataclass(frozen=True)
class Memory:
    """How many threads the memory of one NUMA node serves at their full speed: changes at times, in seconds."""

    threads: float
    changes: tuple[tuple[float, float], ...] = ()

    def at(self, time: float) -> float:
        return next((threads for when, threads in reversed(self.changes) if time >= when), self.threads)


@dataclass(frozen=True)
class Load:
    """Threads of another task on a NUMA node, from one time to another."""

    nid: int
    threads: int
    begin: float
    end: float = inf


@dataclass(frozen=True)
class Case:
    """A task of ``chunks`` chunks, in shares of ``memory``'s nodes, on a machine of ``cpus`` CPUs."""

    name: str
    cpus: int
    memory: tuple[Memory, ...]
    chunks: int
    noise: float = 0.0
    loads: tuple[Load, ...] = ()
    shares: tuple[float, ...] = ()
    caps: tuple[tuple[float, int], ...] = ()
    """Other caps on the threads of the task, from a time on, as other tasks come and go."""

    @property
    def nodes(self) -> list[Node]:
        shares = self.shares or (1.0,) * len(self.memory)
        one = len(self.memory) == 1
        sizes = [round(self.chunks * share / sum(shares)) * UNITS for share in shares]
        return [Node(0, size, NO_NODE if one else nid) for nid, size in enumerate(sizes)]

    def cap(self, time: float) -> int:
        return next((cap for when, cap in reversed(self.caps) if time >= when), self.cpus)


@dataclass
class Place:
    """The chunks at work on one NUMA node. ``progress`` is what each of them has done since the beginning of time."""

    memory: Memory
    progress: float = 0.0
    ends: list[tuple[float, int, TaskThread]] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """``threads`` is the mean over the time, ``last`` the number when most of the work was done."""

    seconds: float
    threads: float
    last: int


class Simulation:
    """One run of ``case``, with ``fixed`` threads, or with as many as the search finds."""

    def __init__(self, case: Case, fixed: int | None, seed: int = 1) -> None:
        self._case = case
        self._rng = random.Random(seed)
        self._work = Work(case.nodes, lambda nid: frozenset())
        self._finder = None if fixed else Finder(self._work.nodes)
        self._fixed = fixed or 0
        self._cap = case.cap(0.0)
        self._places = [Place(memory) for memory in case.memory]
        self._threads: list[TaskThread] = []
        self._live = 0
        self._starting: list[tuple[float, int, TaskThread]] = []
        self._sizes: dict[TaskThread, int] = {}
        self._begun: dict[TaskThread, float] = {}
        self._time = 0.0
        self._count = 0
        self._due = True
        least = fixed or self._cap
        self._chunk = chunk_size(self._work.size, 1, least, max_chunk_size=UNITS)

    def run(self) -> Run:
        changes = sorted(
            {when for memory in self._case.memory for when, _ in memory.changes}
            | {when for load in self._case.loads for when in (load.begin, load.end)}
            | {when for when, _ in self._case.caps}
        )
        if self._finder is None:
            for slot in range(self._fixed):
                self._start(slot % len(self._work.nodes))
        else:
            self._finder.begin(lambda units: min(ARITHMETIC, units), self._cap, self._work.size, 0)
            self._hire()
        total, last = 0.0, 0
        while self._live:
            speeds = [self._speed(place, nid) for nid, place in enumerate(self._places)]
            ends = [
                self._time + (place.ends[0][0] - place.progress) / speed if place.ends else inf
                for place, speed in zip(self._places, speeds, strict=True)
            ]
            change = next((when for when in changes if when > self._time), inf)
            starts = self._starting[0][0] if self._starting else inf
            now = min(*ends, change, starts)
            total += self._live * (now - self._time)
            if self._work.left > self._work.size / 10:
                last = self._live
            for place, speed in zip(self._places, speeds, strict=True):
                place.progress += speed * (now - self._time)
            self._time = now
            if now == change:
                self._change_cap()
            elif now == starts:
                self._begin(heapq.heappop(self._starting)[2])
            else:
                place = self._places[ends.index(now)]
                _, _, thread = heapq.heappop(place.ends)
                self._finish(thread)
        return Run(self._time, total / self._time, last)

    def _speed(self, place: Place, nid: int) -> float:
        loads = (load for load in self._case.loads if load.nid == nid and load.begin <= self._time < load.end)
        others = sum(load.threads for load in loads)
        return min(1.0, place.memory.at(self._time) / max(len(place.ends) + others, 1))

    def _change_cap(self) -> None:
        cap = self._case.cap(self._time)
        if cap != self._cap and self._finder is not None:
            self._cap = cap
            self._finder.limit(cap)
            self._due = True
            self._hire()

    def _start(self, index: int) -> None:
        before = next((thread for thread in self._threads if not thread.live), None)
        slot = before.slot if before else len(self._threads)
        thread = TaskThread(slot, index, before)
        self._threads[slot : slot + 1] = [thread]
        self._live += 1
        self._count += 1
        heapq.heappush(self._starting, (self._time + (START if slot else 0.0), self._count, thread))

    def _hire(self) -> None:
        assert self._finder is not None
        while self._live < self._cap:
            index = self._finder.place(self._threads)
            if index is None:
                break
            self._start(index)

    def _begin(self, thread: TaskThread) -> None:
        thread.tid = 1
        if self._finder is not None:
            self._finder.join(thread)
        self._take(thread)

    def _finish(self, thread: TaskThread) -> None:
        thread.busy_ns += round((self._time - self._begun[thread]) * 1e9)
        thread.at_chunk = False
        thread.chunks += 1
        thread.units += self._sizes[thread]
        self._take(thread)

    def _take(self, thread: TaskThread) -> None:
        work, finder = self._work, self._finder
        if not work.left:
            self._leave(thread)
            return
        if finder is not None and (self._due or not work.nodes[thread.index].left):
            if not thread.is_first and finder.too_many(thread, self._threads):
                index = finder.place(self._threads)
                if index is None:
                    self._leave(thread)
                    return
                thread.index = index
            self._hire()
        thread.index = work.choose(thread.index, self._rng.randrange)
        node_work = work.nodes[thread.index]
        size = self._chunk
        if finder is not None and work.left < finder.look_at:
            self._due |= finder.look(round(self._time * 1e9), self._threads, self._chunk, work.left)
        if self._live > 1:
            size = tail_chunk_size(work.left, size, 1, self._live)
        size = min(size, node_work.left)
        node_work.left -= size
        work.left -= size
        thread.at_chunk = True
        self._sizes[thread] = size
        self._begun[thread] = self._time
        need = CHUNK * size / UNITS * (1 + self._case.noise * self._rng.uniform(-1, 1))
        place = self._places[max(thread.index, 0)]
        self._count += 1
        heapq.heappush(place.ends, (place.progress + need, self._count, thread))

    def _leave(self, thread: TaskThread) -> None:
        thread.live = False
        self._live -= 1


def best_fixed(case: Case) -> tuple[int, Run]:
    """The smallest number of threads that is at most half a percent slower than the fastest."""
    numbers = sorted({number for number in _candidates(case) if 1 <= number <= case.cpus})
    runs = {number: Simulation(case, number).run() for number in numbers}
    quickest = min(run.seconds for run in runs.values())
    best = next(number for number in numbers if runs[number].seconds <= quickest * 1.005)
    return best, runs[best]


def _candidates(case: Case) -> Iterable[int]:
    number = 1.0
    while number < case.cpus:
        yield round(number)
        number = max(number + 1, number * 1.15)
    yield case.cpus
    for memory in case.memory:
        for threads in (memory.threads, *(threads for _, threads in memory.changes)):
            yield from (int(threads), int(threads) * len(case.memory))
