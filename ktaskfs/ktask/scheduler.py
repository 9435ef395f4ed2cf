"""Who does which chunk: the state of a running task, under one lock. It neither starts threads nor does chunks."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.ktask.arithmetic import batch_size, chunk_size, nthreads, tail_chunk_size
from ktaskfs.ktask.budget import HelperBudget
from ktaskfs.ktask.machine import NO_NODE, Placement, place_on_node
from ktaskfs.ktask.outcome import Outcome, ThreadShare
from ktaskfs.ktask.ranges import Span
from ktaskfs.ktask.throttle import TokenBucket
from ktaskfs.ktask.work import Work
from ktaskfs.ktask.worker import FIRST_SLOT, Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.ktask.control import Control, Node


_TOGETHER_NS: Final = 10_000_000
"""How long (10 ms) the first thread waits for the others to have begun; a machine that is busy keeps nobody longer."""


class Scheduler:
    """Hands out chunks, counts what is done, and obeys the controls.

    A thread waits at its own gate, without the lock: the first one may be interrupted there, by a signal's handler that
    raises, and what it then holds must be certain. (``threading.Condition`` gives its lock back and takes it again.)
    """

    def __init__(self, nodes: Sequence[Node], ctl: Control) -> None:
        self._ctl = ctl
        self._clock = ctl.clock
        self._monitor = ctl.monitor
        self._machine = ctl.machine
        self._batch = batch_size(ctl.min_chunk_size, ctl.align)

        self._lock = Lock()  # guards every field below, and those of Work, Range and Worker
        self._work = Work(nodes, self._machine.node_cpus)
        self._budget = ctl.budget or HelperBudget(ctl.machine, 0)  # the task's own is made when it begins
        self._cpus = 1
        self.first = Worker(FIRST_SLOT, 0, None)
        """The calling thread's, which takes part from ``begin_task`` on."""
        self.first.live = False
        self._workers = [self.first]  # by slot, the latest of each
        self._claimed = False
        self._live = 0  # workers that have not left
        self._begun = 0  # those of them whose thread has begun
        self._most = 0
        self._base: Placement | None = None
        self._keeper: Worker | None = None  # of those that the rate holds back, the one that waits for its time
        self._began_ns: int | None = None
        self._ended_ns: int | None = None
        self._cancelled = False
        self._paused = False
        self._error: tuple[BaseException, Any] | None = None
        self._units_undone: int | None = None
        self._nice = ctl.nice
        self._raised: Worker | None = None  # the helper that the first thread, which waits for it, has raised
        self._bucket = TokenBucket()
        self._bucket.set_rate(ctl.rate, self._clock.monotonic_ns())
        self._max_threads = ctl.max_threads
        self._sharers = 1  # threads that share the work; helpers beyond them end
        self._chunk = self._work.size

    # Controls, from any thread.

    def cancel(self) -> None:
        with self._lock:
            if self._ended_ns is None:
                self._cancelled = True
                self._wake_all()

    def pause(self) -> None:
        with self._lock:
            self._paused = True

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            self._wake_all()

    def set_rate(self, rate: float | None) -> None:
        with self._lock:
            self._bucket.set_rate(rate, self._clock.monotonic_ns())
            self._wake_all()

    def set_nice(self, nice: int) -> None:
        with self._lock:
            self._nice = nice
            for worker in self._workers:
                if worker.live and worker.tid and not worker.is_first:
                    self._machine.set_nice(worker.tid, nice)
            self._raised = None
            self.first.wake()

    # The life of a thread.

    def claim(self) -> None:
        """The calling thread is to be the first. Raises RuntimeError if the task has been run before."""
        with self._lock:
            if self._claimed:
                raise RuntimeError("a job runs once")
            self._claimed = True

    def begin_task(self, tid: int, base: Placement | None) -> None:
        """The first thread takes part; ``base`` is where threads may be, None: they are not to be moved."""
        with self._lock:
            self._base = base
            self._cpus = max(self._machine.cpus(), 1)
            self._budget = self._ctl.budget or HelperBudget(self._machine, self._ctl.cpu_percent)
            self._began_ns = self._clock.monotonic_ns()
            self.first.live = True
            self._live = 1
            self._begin(self.first, tid)

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
            size = self._work.size
            wanted = nthreads(size, ctl.min_chunk_size, self._cpus, self._max_threads, align=ctl.align)
            helpers = []
            while self._live < wanted and (helper := self._hire()) is not None:
                helpers.append(helper)
            self._sharers = min(self._live, wanted)
            self._chunk = chunk_size(
                size,
                ctl.min_chunk_size,
                self._sharers,
                max_chunk_size=ctl.max_chunk_size,
                align=ctl.align,
                load_bal_shift=ctl.load_bal_shift,
            )
            self._wake_all()
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
        end = self._clock.monotonic_ns() + _TOGETHER_NS
        while (left := end - self._clock.monotonic_ns()) > 0:
            with self._lock:
                if self._begun >= self._live or self._over():
                    break
            self._clock.wait(self.first.gate, left / 1e9)

    def give_up(self, worker: Worker) -> None:
        """The thread for ``worker`` could not be started."""
        with self._lock:
            self._leave(worker)

    def take(self, worker: Worker) -> Span | None:
        """Its last chunk is done; the next one, once one may start. None: it must end."""
        while True:
            with self._lock:
                if worker.chunk is not None:
                    self._count(worker, worker.chunk)
                if self._over() or (self._live > self._sharers and not worker.is_first):
                    self._leave(worker)
                    return None
                seconds = self._bucket.delay(self._clock.monotonic_ns()) if self._bucket.limited else 0.0
                if not (self._paused or seconds):
                    return self._hand_out(worker)
                wait = self._hold_back(worker, seconds)
            self._clock.wait(worker.gate, wait)

    def move(self, worker: Worker) -> Placement | None:
        """Where the thread of ``worker``, which asks, must go before it does its chunk; None: it is there.

        Without the lock: nobody else changes what is read here while the thread has a chunk.
        """
        part = self._work.ranges[worker.index]
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
                self._error = error, (chunk.first if chunk else self._work.ranges[worker.index].handed_out.last)
            try:
                self._wake_all()
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
        while True:
            with self._lock:
                helper = next((worker for worker in self._workers if worker.live), None)
                if helper is None:
                    if self._ended_ns is None:
                        self._ended_ns = self._clock.monotonic_ns()
                    return
                if nice < self._nice and helper is not self._raised:
                    self._machine.set_nice(helper.tid, nice)
                    self._raised = helper
            self._clock.wait(self.first.gate, None)

    # What is known of the task.

    @property
    def error(self) -> tuple[BaseException, Any] | None:
        """The first exception, and the position where its chunk starts."""
        with self._lock:
            return self._error

    def start_undo(self) -> list[Span]:
        """The finished ranges, which are to be taken back; from now on they do not count as done."""
        with self._lock:
            finished = self._work.finished(self._held())
            self._units_undone = sum(span.end - span.start for span in finished)
            self._monitor.undo_started()
        return finished

    def outcome(self) -> Outcome:
        with self._lock:
            per_node, left = self._work.shares(self._held(), undone=self._units_undone is not None)
            now = self._clock.monotonic_ns() if self._ended_ns is None else self._ended_ns
            return Outcome(
                units_done=sum(share.units for share in per_node),
                units_undone=self._units_undone or 0,
                chunks=sum(share.chunks for share in per_node),
                threads=self._most,
                seconds=0.0 if self._began_ns is None else (now - self._began_ns) / 1e9,
                cancelled=self._cancelled and self._work.left > 0,
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
        return self._cancelled or self._error is not None or self._work.left == 0

    def _wake_all(self) -> None:
        for worker in self._workers:
            worker.wake()

    def _hold_back(self, worker: Worker, seconds: float) -> float | None:
        """Say that a thread waits; returns for how long, None: until it is woken.

        Of those that the rate holds back one waits for the time to come, and wakes the next when it has its chunk.
        """
        why = "paused" if self._paused else "throttled"
        if why != worker.waits:
            worker.waits = why
            self._monitor.thread_waits(worker.slot, why)
        if self._paused:
            return None
        if self._keeper is None:
            self._keeper = worker
        return seconds if self._keeper is worker else None

    def _go_on(self, worker: Worker) -> None:
        """A thread does not wait any more."""
        worker.waits = ""
        if self._keeper is worker:
            self._keeper = next((each for each in self._workers if each.waits == "throttled"), None)
            if self._keeper is not None:
                self._keeper.wake()

    def _hire(self) -> Worker | None:
        before = next((w for w in self._workers if not w.live), None) if self._live < len(self._workers) else None
        slot = before.slot if before else len(self._workers)
        worker = Worker(slot, slot % len(self._work.ranges), before)
        # It is one of ours before the budget is asked: after an interrupt in between it can still be dismissed.
        self._workers[slot : slot + 1] = [worker]
        self._live += 1
        if not self._budget.hire(worker):
            worker.live = False
            self._live -= 1
            return None
        return worker

    def _begin(self, worker: Worker, tid: int) -> None:
        worker.tid = tid
        self._begun += 1
        self._most = max(self._most, self._begun)
        self.first.wake()
        self._monitor.thread_started(worker.slot, tid, self._work.ranges[worker.index].node.nid)

    def _leave(self, worker: Worker) -> None:
        """The thread takes no further part. What comes before its mark can be done twice, after an interrupt."""
        if not worker.live:
            return
        self.first.wake()
        self._go_on(worker)
        if not worker.is_first:
            self._budget.dismiss(worker)
        if worker.tid:
            self._monitor.thread_ended(worker.slot)
        worker.live = False
        self._live -= 1
        self._begun -= worker.tid != 0

    def _count(self, worker: Worker, chunk: Span) -> None:
        worker.chunk = None
        worker.chunks += 1
        worker.units += chunk.end - chunk.start
        self._work.ranges[worker.index].chunks += 1

    def _hand_out(self, worker: Worker) -> Span:
        work = self._work
        worker.index = work.choose(worker.index, self._ctl.pick)
        part = work.ranges[worker.index]
        nid = part.node.nid
        if nid != worker.pinned:
            worker.pinned = nid if worker.is_first or self._budget.pin(worker, nid) else NO_NODE
        size = min(self._next_size(), part.left)
        at = part.handed_out
        end = self._ctl.iter_func(at.last, size)
        chunk = Span(at.end, at.end + size, at.last, end)
        # In this order, each with one store: an interrupt in between must not make a chunk look done.
        worker.chunk = chunk
        self._monitor.chunk_assigned(worker.slot, worker.index, chunk.start, chunk.end)
        work.advance(worker.index, size, end)
        self._monitor.node_advanced(worker.index, chunk.end)
        self._bucket.spend(size)
        if worker.waits:
            self._go_on(worker)
        if not work.left:
            self._wake_all()
        return chunk

    def _next_size(self) -> int:
        ctl = self._ctl
        chunk = self._chunk
        if not ctl.fixed_chunks:
            chunk = tail_chunk_size(self._work.left, chunk, ctl.min_chunk_size, self._sharers, align=ctl.align)
        if self._bucket.limited:
            chunk = max(self._bucket.chunk_limit(chunk) // self._batch, 1) * self._batch
        return chunk

    def _held(self) -> dict[int, list[Span]]:
        """The chunks that run or have failed, by the index of their range."""
        held: dict[int, list[Span]] = {}
        for worker in self._workers:
            if worker.chunk is not None:
                held.setdefault(worker.index, []).append(worker.chunk)
        return held
