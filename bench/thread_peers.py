"""ktask and its peers, ThreadPoolExecutor.map and joblib's threading backend, at the same work: chunks that sleep."""

from __future__ import annotations

import functools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from bench.virtual_time import costs
from ktaskfs import ktask

if TYPE_CHECKING:
    from collections.abc import Callable

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
    """Chunks of one unit on so many threads that all run at the same nice value, on any number of CPUs."""
    return ktask.Control(
        work,
        min_chunk_size=1,
        max_chunk_size=1,
        max_threads=threads,
        threads="fixed",
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


def nothing(start: int, end: int = 0, /) -> None:
    """The work of a chunk, if only the cost of handing it out is measured."""


def gil_time(peer: str, chunks: int = 20_000) -> float:
    """CPU microseconds for each chunk that does nothing, with one thread, which waits for no other.

    With two threads for joblib, which hands nothing out to one.
    """
    began = time.process_time()
    SPREADS[peer](nothing, chunks, 2 if peer == "joblib" else 1)
    return (time.process_time() - began) / chunks * 1e6
