"""Who does which chunk: the state of a running task, under one lock. It neither starts threads nor does chunks."""

from __future__ import annotations

from threading import Condition, Lock
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.ktask.arithmetic import batch_size, chunk_size, nthreads, tail_chunk_size
from ktaskfs.ktask.budget import HelperBudget
from ktaskfs.ktask.control import Node
from ktaskfs.ktask.machine import NO_NODE, Placement, place_on_node
from ktaskfs.ktask.outcome import NodeShare, Outcome, ThreadShare
from ktaskfs.ktask.ranges import Range, Span
from ktaskfs.ktask.throttle import TokenBucket
from ktaskfs.ktask.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.ktask.control import Control


_TOGETHER_NS: Final = 10_000_000
"""How long (10 ms) the first thread waits for the others to have begun; a machine that is busy keeps nobody longer."""


class Scheduler:
    """Hands out chunks, counts what is done, and obeys the controls."""

    def __init__(self, nodes: Sequence[Node], ctl: Control) -> None:
        self._ctl = ctl
        self._clock = ctl.clock
        self._monitor = ctl.monitor
        self._machine = ctl.machine
        self._budget = ctl.budget or HelperBudget(ctl.machine, ctl.cpu_percent)
        self._cpus = max(self._machine.cpus(), 1)
        self._size = sum(node.size for node in nodes)
        self._batch = batch_size(ctl.min_chunk_size, ctl.align)

        self._lock = Lock()  # guards every field below, and those of Range and Worker
        self._changed = Condition(self._lock)
        self._ranges = []
        for node in nodes:
            cpus = frozenset[int]() if node.nid == NO_NODE else self._machine.node_cpus(node.nid)
            self._ranges.append(Range(node, cpus))
        self._left = self._size
        self._workers: list[Worker] = []  # by slot, the latest of each
        self._live = 0  # workers that have not left
        self._begun = 0  # those of them whose thread has begun
        self._most = 0
        self._base: Placement | None = None
        self._began_ns: int | None = None
        self._ended_ns: int | None = None
        self._cancelled = False
        self._paused = False
        self._error: tuple[BaseException, Any] | None = None
        self._units_undone: int | None = None
        self._nice = ctl.nice
        self._bucket = TokenBucket()
        self._bucket.set_rate(ctl.rate, self._clock.monotonic_ns())
        self._max_threads = ctl.max_threads
        self._sharers = 1  # threads that share the work; helpers beyond them end
        self._chunk = self._size

    # Controls, from any thread.

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            self._changed.notify_all()

    def pause(self) -> None:
        with self._lock:
            self._paused = True

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            self._changed.notify_all()

    def set_rate(self, rate: float | None) -> None:
        with self._lock:
            self._bucket.set_rate(rate, self._clock.monotonic_ns())
            self._changed.notify_all()

    def set_nice(self, nice: int) -> None:
        with self._lock:
            self._nice = nice
            for worker in self._workers:
                if worker.live and worker.tid and not worker.is_first:
                    self._machine.set_nice(worker.tid, nice)

    # The life of a thread.

    def begin_task(self, tid: int, base: Placement | None) -> Worker:
        """The first thread takes part. Raises RuntimeError if the task has been run before.

        ``base`` is where threads may be; None: they are not to be moved.
        """
        with self._lock:
            if self._began_ns is not None:
                raise RuntimeError("a job runs once")
            self._base = base
            self._began_ns = self._clock.monotonic_ns()
            first = self._hire()
            self._begin(first, tid)
        return first

    def hire(self, max_threads: int | None = None) -> list[Worker]:
        """The helpers that are to be started now; each must ``begin`` or be given up.

        With ``max_threads`` after a change to that many; helpers that are too many end when they ask for a chunk.
        """
        with self._lock:
            if max_threads is not None:
                self._max_threads = max_threads
            if self._began_ns is None or self._over():
                return []
            ctl = self._ctl
            wanted = nthreads(self._size, ctl.min_chunk_size, self._cpus, self._max_threads, align=ctl.align)
            helpers = []
            while self._live < wanted and self._budget.hire():
                helpers.append(self._hire())
            self._sharers = min(self._live, wanted)
            self._chunk = chunk_size(
                self._size,
                ctl.min_chunk_size,
                self._sharers,
                max_chunk_size=ctl.max_chunk_size,
                align=ctl.align,
                load_bal_shift=ctl.load_bal_shift,
            )
            self._changed.notify_all()
            return helpers

    def begin(self, worker: Worker, tid: int) -> bool:
        """A helper thread has started; False: it came too late and must end, touching nothing."""
        with self._lock:
            if worker.live:
                self._machine.set_nice(tid, self._nice)
                self._begin(worker, tid)
            return worker.live

    def await_helpers(self) -> None:
        """For the first thread: wait a moment until all helpers have begun, so that all take chunks from then on.

        A new thread maps memory (its stack, an arena of malloc(3)) before it can ask for a chunk, and waits for that as
        long as another one populates a page in the same address space: 120 ms for a gigantic one (measured).
        """
        with self._lock:
            end = self._clock.monotonic_ns() + _TOGETHER_NS
            while self._begun < self._live and not self._over():
                left = end - self._clock.monotonic_ns()
                if left <= 0:
                    break
                self._clock.wait(self._changed, left / 1e9)

    def give_up(self, worker: Worker) -> None:
        """The thread for ``worker`` could not be started."""
        with self._lock:
            self._leave(worker)

    def take(self, worker: Worker) -> Span | None:
        """Its last chunk is done; the next one, once one may start. None: it must end."""
        with self._lock:
            if worker.chunk is not None:
                self._count(worker, worker.chunk)
            waits = ""
            while True:
                if self._over() or (self._live > self._sharers and not worker.is_first):
                    self._leave(worker)
                    return None
                seconds = self._bucket.delay(self._clock.monotonic_ns()) if self._bucket.limited else 0.0
                why = "paused" if self._paused else "throttled" if seconds else ""
                if not why:
                    return self._hand_out(worker)
                if why != waits:
                    self._monitor.thread_waits(worker.slot, why)
                    waits = why
                self._clock.wait(self._changed, None if self._paused else seconds)

    def move(self, worker: Worker) -> Placement | None:
        """Where the thread of ``worker``, which asks, must go before it does its chunk; None: it is there.

        Without the lock: nobody else changes what is read here while the thread has a chunk.
        """
        part = self._ranges[worker.index]
        where = part.node.nid, worker.pinned
        if self._base is None or where == worker.placed:
            return None
        worker.placed = where
        return place_on_node(self._base, part.node.nid, part.cpus if worker.pinned == part.node.nid else frozenset())

    def fail(self, worker: Worker, error: BaseException) -> None:
        """The thread ends with ``error``; the first one stops the handing out."""
        with self._lock:
            chunk = worker.chunk
            if self._error is None:
                self._error = error, (chunk.first if chunk else self._ranges[worker.index].handed_out.last)
            try:
                if chunk is not None:
                    self._monitor.chunk_failed(worker.slot, worker.index, chunk.start, chunk.end)
            finally:
                self._leave(worker)

    def drain(self, nice: int) -> None:
        """Wait until all helpers have ended, raising one at a time to ``nice`` (v4's answer to starvation).

        For the first thread, when nothing is left to hand out. Helpers that have not begun yet need not.
        """
        with self._lock:
            for worker in self._workers:
                if worker.live and not worker.tid:
                    self._leave(worker)
            while self._live:
                helper = next(worker for worker in self._workers if worker.live)
                if nice < self._nice:
                    self._machine.set_nice(helper.tid, nice)
                self._clock.wait(self._changed, None)
            if self._ended_ns is None:
                self._ended_ns = self._clock.monotonic_ns()

    # What is known of the task.

    @property
    def error(self) -> tuple[BaseException, Any] | None:
        """The first exception, and the position where its chunk starts."""
        with self._lock:
            return self._error

    def start_undo(self) -> list[Span]:
        """The finished ranges, which are to be taken back; from now on they do not count as done."""
        with self._lock:
            finished = [span for index, part in enumerate(self._ranges) for span in part.split(self._held(index))[0]]
            self._units_undone = sum(span.end - span.start for span in finished)
            self._monitor.undo_started()
        return finished

    def outcome(self) -> Outcome:
        with self._lock:
            left: list[Node] = []
            per_node = []
            for index, part in enumerate(self._ranges):
                node = part.node
                rest = [Node(span.first, span.end - span.start, node.nid) for span in part.split(self._held(index))[1]]
                if self._units_undone is not None:
                    rest = [node] if node.size else []
                left += rest
                done = node.size - sum(piece.size for piece in rest)
                per_node.append(NodeShare(node.nid, node.size, done, part.chunks))
            now = self._clock.monotonic_ns() if self._ended_ns is None else self._ended_ns
            return Outcome(
                units_done=sum(share.units for share in per_node),
                units_undone=self._units_undone or 0,
                chunks=sum(share.chunks for share in per_node),
                threads=self._most,
                seconds=0.0 if self._began_ns is None else (now - self._began_ns) / 1e9,
                cancelled=self._cancelled and self._left > 0,
                per_thread=tuple(
                    ThreadShare(worker.slot, worker.chunks, worker.units, worker.busy_ns / 1e9)
                    for worker in self._workers
                    if worker.tid or worker.chunks
                ),
                per_node=tuple(per_node),
                left=tuple(left),
            )

    # The lock is held below.

    def _over(self) -> bool:
        return self._cancelled or self._error is not None or self._left == 0

    def _hire(self) -> Worker:
        before = next((w for w in self._workers if not w.live), None) if self._live < len(self._workers) else None
        slot = before.slot if before else len(self._workers)
        worker = Worker(slot, slot % len(self._ranges), before)
        self._workers[slot : slot + 1] = [worker]
        self._live += 1
        return worker

    def _begin(self, worker: Worker, tid: int) -> None:
        worker.tid = tid
        self._begun += 1
        self._most = max(self._most, self._begun)
        self._changed.notify_all()
        self._monitor.thread_started(worker.slot, tid, self._ranges[worker.index].node.nid)

    def _leave(self, worker: Worker) -> None:
        if worker.live:
            worker.live = False
            self._live -= 1
            self._unpin(worker)
            if not worker.is_first:
                self._budget.dismiss()
            self._changed.notify_all()
            if worker.tid:
                self._begun -= 1
                self._monitor.thread_ended(worker.slot)

    def _unpin(self, worker: Worker) -> None:
        if not worker.is_first:
            self._budget.unpin(worker.pinned)
        worker.pinned = NO_NODE

    def _count(self, worker: Worker, chunk: Span) -> None:
        worker.chunk = None
        worker.chunks += 1
        worker.units += chunk.end - chunk.start
        self._ranges[worker.index].chunks += 1

    def _hand_out(self, worker: Worker) -> Span:
        part = self._ranges[worker.index]
        if not part.left:
            worker.index = self._next_range(part.node.nid)
            part = self._ranges[worker.index]
        if part.node.nid != worker.pinned:
            self._unpin(worker)
            if worker.is_first or self._budget.pin(part.node.nid):
                worker.pinned = part.node.nid
        size = min(self._next_size(), part.left)
        at = part.handed_out
        end = self._ctl.iter_func(at.last, size)
        chunk = Span(at.end, at.end + size, at.last, end)
        # In this order, each with one store: an interrupt in between must not make a chunk look done.
        worker.chunk = chunk
        self._monitor.chunk_assigned(worker.slot, worker.index, chunk.start, chunk.end)
        part.handed_out = Span(0, chunk.end, at.first, end)
        self._monitor.node_advanced(worker.index, chunk.end)
        self._left -= size
        self._bucket.spend(size)
        return chunk

    def _next_size(self) -> int:
        ctl = self._ctl
        chunk = self._chunk
        if not ctl.fixed_chunks:
            chunk = tail_chunk_size(self._left, chunk, ctl.min_chunk_size, self._sharers, align=ctl.align)
        if self._bucket.limited:
            chunk = max(self._bucket.chunk_limit(chunk) // self._batch, 1) * self._batch
        return chunk

    def _next_range(self, nid: int) -> int:
        """A range with work left: of the same node if there is one, else a random one."""
        open_ranges = [index for index, part in enumerate(self._ranges) if part.left]
        for index in open_ranges:
            if self._ranges[index].node.nid == nid:
                return index
        return open_ranges[self._ctl.pick(len(open_ranges))]

    def _held(self, index: int) -> list[Span]:
        """The chunks of a range that run or have failed."""
        return [worker.chunk for worker in self._workers if worker.chunk is not None and worker.index == index]
