"""A simulated machine, a simulated clock, and a monitor that checks the reports it gets."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ktaskfs.ktask import Control, Monitor, Placement
from tests.support.poll import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TIMEOUT = DEADLINE
"""Seconds after which a test that waits for another thread gives up and fails; never reached otherwise."""


class FakeMachine:
    """Has ``cpus`` CPUs, spread over ``nodes``; records the places and nice values that threads get."""

    def __init__(self, cpus: int = 64, nodes: Mapping[int, frozenset[int]] | None = None, nice: int = 3) -> None:
        self.count = cpus
        self.nodes = dict(nodes or {})
        self.own_nice = nice
        self.lock = threading.Lock()  # guards the two records
        self.placed: list[tuple[int, Placement]] = []
        self.niced: list[tuple[int, int]] = []

    def cpus(self) -> int:
        return self.count

    def node_cpus(self, nid: int) -> frozenset[int]:
        return self.nodes.get(nid, frozenset())

    def placement(self) -> Placement:
        return Placement(frozenset(range(self.count)), (0, frozenset()))

    def place(self, where: Placement) -> None:
        with self.lock:
            self.placed.append((threading.get_native_id(), where))

    def nice(self) -> int:
        return self.own_nice

    def set_nice(self, tid: int, nice: int) -> None:
        with self.lock:
            self.niced.append((tid, nice))


class FakeClock:
    """A clock that advances only when a thread waits for a time."""

    def __init__(self) -> None:
        self.now_ns = 0

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wait(self, gate: threading.Lock, seconds: float | None) -> None:
        if seconds is None:
            assert gate.acquire(timeout=TIMEOUT), "nobody woke a thread that waits"
        else:
            step = int(seconds * 1e9) + 1  # a call between read and write would let another thread in
            self.now_ns += step


class Ledger(Monitor):
    """Records what an outside observer knows: a position for each node and the latest chunk of each slot.

    ``done_units`` are the units that it may take for done at any moment: below the position and in no slot's chunk.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()  # guards all below
        self.positions: dict[int, int] = {}
        self.chunks: dict[int, tuple[int, int, int]] = {}
        self.live: dict[int, int] = {}
        self.failed: set[int] = set()
        self.calls: list[tuple[Any, ...]] = []
        self.waiting = threading.Semaphore(0)
        self.after: Callable[[], None] = lambda: None

    def done_units(self) -> set[tuple[int, int]]:
        done = {(node, unit) for node, position in self.positions.items() for unit in range(position)}
        for node, start, end in self.chunks.values():
            done -= {(node, unit) for unit in range(start, end)}
        return done

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        self.after()

    def thread_started(self, slot: int, tid: int, nid: int) -> None:
        with self.lock:
            assert slot not in self.live, "two live threads in one slot"
            assert slot not in self.failed, "the slot of a failed chunk was given away"
            self.live[slot] = tid
            self._note("thread_started", slot, nid)

    def chunk_assigned(self, slot: int, node: int, start: int, end: int) -> None:
        with self.lock:
            assert start == self.positions.get(node, 0), "not handed out in order"
            assert slot in self.live
            self.chunks[slot] = (node, start, end)
            self._note("chunk_assigned", slot, node, start, end)

    def node_advanced(self, node: int, position: int) -> None:
        with self.lock:
            self.positions[node] = position
            self._note("node_advanced", node, position)

    def chunk_done(self, slot: int, node: int, start: int, end: int, busy_ns: int) -> None:
        with self.lock:
            assert self.chunks.pop(slot) == (node, start, end)
            assert busy_ns >= 0
            self._note("chunk_done", slot, node, start, end)

    def chunk_failed(self, slot: int, node: int, start: int, end: int) -> None:
        with self.lock:
            assert self.chunks.setdefault(slot, (node, start, end)) == (node, start, end)
            self.failed.add(slot)
            self._note("chunk_failed", slot, node, start, end)

    def thread_waits(self, slot: int, why: str) -> None:
        with self.lock:
            self._note("thread_waits", slot, why)
        self.waiting.release()

    def thread_ended(self, slot: int) -> None:
        with self.lock:
            if slot or slot in self.live:  # of the first thread it may come twice
                del self.live[slot]
            self._note("thread_ended", slot)

    def threads_found(self, nid: int, threads: int, why: str) -> None:
        with self.lock:
            self._note("threads_found", nid, threads, why)

    def undo_started(self) -> None:
        with self.lock:
            self.positions.clear()
            self.chunks.clear()
            self._note("undo_started")

    def most_live(self, last: int) -> int:
        """The most threads at once that got a chunk during the ``last`` calls and had not ended.

        A thread that should have left and stalls in an earlier chunk does not count.
        """
        live: set[int] = set()
        most = 0
        for name, *rest in self.calls[-last:]:
            if name == "chunk_assigned":
                live.add(rest[0])
                most = max(most, len(live))
            elif name == "thread_ended":
                live.discard(rest[0])
        return most

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]


def control(thread_func: Callable[[Any, Any], object], **fields: Any) -> Control:
    """Returns a Control on a simulated machine with enough CPUs. No other limit applies to its helpers.

    It has as many threads as the arithmetic gives.
    """
    return Control(
        thread_func, **{"min_chunk_size": 1, "machine": FakeMachine(), "cpu_percent": 100, "threads": "fixed", **fields}
    )


def units_of(ranges: Any) -> list[int]:
    """Returns the units of (start, end) pairs, or of Nodes whose starts are numbers."""
    pairs = [(item.start, item.start + item.size) if hasattr(item, "nid") else item for item in ranges]
    return [unit for start, end in pairs for unit in range(start, end)]


class Background:
    """Runs ``function`` in a thread; ``result`` waits for it and returns its result, or raises its exception."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive(), "the run does not end"
        if self._error is not None:
            raise self._error
        return self._value


class Chunks:
    """A chunk function that calls ``each`` and then records the range as finished."""

    def __init__(self, each: Any = lambda start, end: None) -> None:
        self._each = each
        self._lock = threading.Lock()  # guards finished
        self.finished: list[tuple[int, int]] = []

    def __call__(self, start: int, end: int) -> None:
        self._each(start, end)
        with self._lock:
            self.finished.append((start, end))

    @property
    def units(self) -> list[int]:
        return sorted(units_of(self.finished))


class Gate:
    """A chunk function that reports the begin of a chunk, and holds the chunk until ``end_to`` allows its end."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self._changed = threading.Condition()
        self._open_to = 0

    def __call__(self, start: int, end: int) -> None:
        self.begun.release()
        with self._changed:
            assert self._changed.wait_for(lambda: end <= self._open_to, TIMEOUT)

    def end_to(self, position: int) -> None:
        """Allow chunks up to ``position`` to end."""
        with self._changed:
            self._open_to = position
            self._changed.notify_all()

    def wait_begun(self, chunks: int = 1) -> None:
        for _ in range(chunks):
            assert self.begun.acquire(timeout=TIMEOUT)

    def none_begun(self) -> bool:
        return not self.begun.acquire(blocking=False)


class Unlucky(Exception):
    """The exception that chunk functions of these tests raise."""
