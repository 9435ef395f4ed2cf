"""Who does which chunk: the state of a running task, under one lock, and a thread's way from chunk to chunk."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.ktask.arithmetic import chunk_size, nthreads, tail_chunk_size, tail_size, whole_batches
from ktaskfs.ktask.crew import Crew
from ktaskfs.ktask.machine import Placement, place_on_node
from ktaskfs.ktask.monitor import Silence
from ktaskfs.ktask.outcome import Outcome, ThreadShare
from ktaskfs.ktask.throttle import TokenBucket
from ktaskfs.ktask.work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktaskfs.ktask.control import Control
    from ktaskfs.ktask.node_work import Chunk
    from ktaskfs.ktask.task_thread import TaskThread
    from ktaskfs.span import Node

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
        self._monitor = Silence() if ctl.monitor is None else ctl.monitor
        self._machine = ctl.machine

        self._lock = Lock()  # guards every field below, and those of Work, NodeWork, Crew and TaskThread
        self._work = Work(nodes, self._machine.node_cpus)
        self._crew = Crew(ctl, self._monitor, len(nodes))
        self.first = self._crew.first
        self._cpus = 1
        self._base: Placement | None = None
        self._keeper: TaskThread | None = None  # of those that the rate holds back, the one that waits for its time
        self._began_ns: int | None = None
        self._ended_ns: int | None = None
        self._cancelled = False
        self._paused = False
        self.failed = False
        self._failure: tuple[BaseException, Any] | None = None
        self._units_undone: int | None = None
        self._bucket = TokenBucket()
        self._bucket.set_rate(ctl.rate, self._clock.monotonic_ns())
        self._max_threads = ctl.max_threads
        self._wanted = 1  # threads, if they can be had
        self._sharers = 1  # threads that share the work; helpers beyond them end
        self._chunk = self._work.size
        self._tail = 0  # with fewer units left chunks are smaller
        self._calm = False  # nothing but chunks to hand out; whoever changes that, or may have, clears it

    # Controls, from any thread.

    def cancel(self) -> None:
        with self._lock:
            if self._ended_ns is None:
                self._cancelled = True
                self._calm = False
                self._crew.wake_all()

    def pause(self) -> None:
        with self._lock:
            self._paused = True
            self._calm = False

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            self._crew.wake_all()

    def set_rate(self, rate: float | None) -> None:
        with self._lock:
            self._bucket.set_rate(rate, self._clock.monotonic_ns())
            self._calm = False
            self._crew.wake_all()

    def set_nice(self, nice: int) -> None:
        with self._lock:
            self._crew.set_nice(nice)

    # The life of a thread.

    def begin_task(self, tid: int, base: Placement | None) -> None:
        """The first thread takes part; ``base`` is where threads may be, None: they are not to be moved."""
        with self._lock:
            self._base = base
            self._cpus = self._machine.cpus()
            began_ns = self._clock.monotonic_ns()
            self._crew.begin_first(tid, self._nid(self.first), moves=base is not None)
            self._began_ns = began_ns

    def hire(self, max_threads: int | None = None) -> list[TaskThread]:
        """The helpers that are to be started now; each must ``begin`` or be given up.

        With ``max_threads`` after a change to that many; helpers that are too many end when they ask for a chunk.
        """
        with self._lock:
            if max_threads is not None:
                self._max_threads = max_threads
            if self._began_ns is None or self._over():
                return []
            ctl, size = self._ctl, self._work.size
            self._wanted = nthreads(size, ctl.min_chunk_size, self._cpus, self._max_threads, align=ctl.align)
            helpers = []
            while self._crew.live < self._wanted and (helper := self._crew.hire()) is not None:
                helpers.append(helper)
            self._share()
            self._crew.wake_all()
            return helpers

    def begin(self, worker: TaskThread, tid: int) -> bool:
        """A helper thread has started, and is to ``move``; False: it came too late and must end, touching nothing."""
        with self._lock:
            if worker.live:
                self._crew.begin_helper(worker, tid, self._nid(worker))
            return worker.live

    def await_helpers(self) -> None:
        """For the first thread: wait a moment until all helpers have begun, so that all take chunks from then on.

        A new thread maps memory (its stack, an arena of malloc(3)) before it can ask for a chunk, and waits for that as
        long as another one populates a page in the same address space: 120 ms for a gigantic one (measured).
        """
        end = self._clock.monotonic_ns() + _TOGETHER_NS
        while (left := end - self._clock.monotonic_ns()) > 0:
            with self._lock:
                if self._crew.begun >= self._crew.live:
                    break
            self._clock.wait(self.first.gate, left / 1e9)

    def give_up(self, workers: Sequence[TaskThread] | None = None) -> None:
        """Do without those of ``workers`` (None: of all) whose threads have not begun; one that comes late must end."""
        with self._lock:
            for worker in self._crew.missing():
                if workers is None or worker in workers:
                    self._leave(worker)
            if not self._over():
                self._share()

    def work(self, worker: TaskThread) -> None:
        """Its thread does chunks until none is to be had; raises what the chunk function does.

        One frame, few calls and few fields from one chunk to the next: a thread whose chunk has slept finds the CPU's
        caches without us, and all that is touched costs a miss.
        """
        ctl, work, lock, numa = self._ctl, self._work, self._lock, self._base is not None
        thread_func, iter_func, now_ns = ctl.thread_func, ctl.iter_func, self._clock.monotonic_ns
        monitor, watched = self._monitor, ctl.monitor is not None
        assigned, advanced, chunk_done = monitor.chunk_assigned, monitor.node_advanced, monitor.chunk_done
        slot, index, size = worker.slot, worker.index, 0
        part = work.ranges[index]
        while True:
            wait: float | None = 0.0
            with lock:
                if worker.at_chunk:
                    worker.at_chunk = False
                    worker.chunks += 1
                    worker.units += size
                    part.chunks += 1
                calm = self._calm
                if not (calm and part.left):
                    wait = self._turn(worker)
                    if not worker.live:
                        return
                    index = worker.index
                    part = work.ranges[index]
                if wait == 0.0:
                    if numa and part.node.nid != worker.pinned:
                        self._crew.pin(worker, part.node.nid)
                    size = self._chunk
                    if work.left < self._tail:
                        size = tail_chunk_size(work.left, size, ctl.min_chunk_size, self._sharers, align=ctl.align)
                    if not calm:
                        size = self._limited(size)
                    if size > part.left:
                        size = part.left
                    first = part.at
                    last = iter_func(first, size)
                    start = part.node.size - part.left
                    end = start + size
                    if watched:
                        assigned(slot, index, start, end)
                    # No call among these, for there a signal's handler may raise: an interrupt finds all or nothing.
                    worker.start = start
                    worker.end = end
                    worker.first = first
                    worker.last = last
                    worker.at_chunk = True
                    part.at = last
                    part.left -= size
                    work.left -= size
                    if watched:
                        advanced(index, end)
                    if not calm:
                        self._bucket.spend(size)
            if wait != 0.0:
                self._clock.wait(worker.gate, wait)
                continue
            if numa:
                self.move(worker)
            began_ns = now_ns()
            thread_func(first, last)
            busy_ns = now_ns() - began_ns
            worker.busy_ns += busy_ns
            if watched:
                chunk_done(slot, index, start, end, busy_ns)

    def move(self, worker: TaskThread) -> None:
        """The thread of ``worker``, which calls, goes where it is to work, if it is not there.

        Without the lock: nobody else changes what is read here.
        """
        if self._base is None:
            return
        part = self._work.ranges[worker.index]
        where = part.node.nid, worker.pinned
        if where != worker.placed:
            worker.placed = where
            cpus = part.cpus if worker.pinned == part.node.nid else frozenset[int]()
            self._machine.place(place_on_node(self._base, part.node.nid, cpus))

    def fail(self, worker: TaskThread, error: BaseException) -> None:
        """The thread ends with ``error``; the first one stops the handing out."""
        with self._lock:
            chunk = worker.chunk
            if not self.failed:
                self._failure = error, (chunk.first if chunk else self._work.ranges[worker.index].at)
                self.failed = True
                self._calm = False
            try:
                self._crew.wake_all()
                if chunk is not None:
                    self._monitor.chunk_failed(worker.slot, worker.index, chunk.start, chunk.end)
            finally:
                self._leave(worker)

    def helper_at_work(self, nice: int) -> bool:
        """Must the first thread, which has nothing left to take, wait at its gate for a helper that has begun?

        One of them at a time is raised to ``nice`` (v4's answer to starvation).
        """
        with self._lock:
            helper = self._crew.helper()
            if helper is not None:
                self._crew.raise_to(helper, nice)
            elif self._ended_ns is None:
                self._ended_ns = self._clock.monotonic_ns()
            return helper is not None

    # What is known of the task.

    def release_failure(self) -> tuple[BaseException, Any] | None:
        """The first exception, and the position where its chunk starts. Kept no longer: its traceback leads here."""
        with self._lock:
            failure, self._failure = self._failure, None
            return failure

    def start_undo(self) -> list[Chunk]:
        """The ranges to take back: the finished ones, which no longer count as done, then, if asked, failed chunks.

        Called when no thread is at work, so that every chunk still held has failed.
        """
        with self._lock:
            held = self._held()
            finished = self._work.finished(held)
            self._units_undone = sum(span.end - span.start for span in finished)
            self._monitor.undo_started()
            return finished + self._work.begun(held) if self._ctl.undo_failed else finished

    def outcome(self) -> Outcome:
        with self._lock:
            per_node, left = self._work.shares(self._held(), undone=self._units_undone is not None)
            now = self._clock.monotonic_ns() if self._ended_ns is None else self._ended_ns
            return Outcome(
                units_done=sum(share.units for share in per_node),
                units_undone=self._units_undone or 0,
                chunks=sum(share.chunks for share in per_node),
                threads=self._crew.most,
                seconds=0.0 if self._began_ns is None else (now - self._began_ns) / 1e9,
                cancelled=self._cancelled and self._work.left > 0,
                per_thread=tuple(
                    ThreadShare(worker.slot, worker.chunks, worker.units, worker.busy_ns / 1e9)
                    for worker in self._crew.workers
                    if worker.tid or worker.chunks
                ),
                per_node=tuple(per_node),
                left=tuple(left),
            )

    # The lock is held below.

    def _over(self) -> bool:
        return self._cancelled or self.failed or self._work.left == 0

    def _nid(self, worker: TaskThread) -> int:
        return self._work.ranges[worker.index].node.nid

    def _share(self) -> None:
        """The chunk size for the threads that there are."""
        ctl = self._ctl
        self._sharers = min(self._crew.live, self._wanted)
        # One thread gets all at once, as in the kernel; but not the one that others have left: controls must reach it.
        threads = self._sharers if self._crew.most <= 1 else max(self._sharers, 2)
        self._chunk = chunk_size(
            self._work.size,
            ctl.min_chunk_size,
            threads,
            max_chunk_size=ctl.max_chunk_size,
            align=ctl.align,
            load_bal_shift=ctl.load_bal_shift,
        )
        self._tail = 0 if ctl.fixed_chunks else tail_size(self._chunk, self._sharers)
        self._calm = False

    def _turn(self, worker: TaskThread) -> float | None:
        """It asks for a chunk. 0.0: it may have one, or has left; else it must wait, so long or (None) until woken."""
        if self._over() or (self._crew.live > self._sharers and not worker.is_first):
            self._leave(worker)
            return 0.0
        limited = self._bucket.rate is not None
        seconds = self._bucket.delay(self._clock.monotonic_ns()) if limited else 0.0
        if self._paused or seconds:
            return self._hold_back(worker, seconds)
        if worker.waits:
            self._go_on(worker)
        worker.index = self._work.choose(worker.index, self._ctl.pick)
        self._calm = not limited and self._crew.live <= self._sharers
        return 0.0

    def _limited(self, size: int) -> int:
        """``size``, or what the rate allows at once."""
        if self._bucket.rate is None:
            return size
        return whole_batches(self._bucket.chunk_limit(size), self._ctl.min_chunk_size, self._ctl.align)

    def _hold_back(self, worker: TaskThread, seconds: float) -> float | None:
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

    def _go_on(self, worker: TaskThread) -> None:
        """A thread does not wait any more."""
        worker.waits = ""
        if self._keeper is worker:
            self._keeper = next((each for each in self._crew.workers if each.waits == "throttled"), None)
            if self._keeper is not None:
                self._keeper.wake()

    def _leave(self, worker: TaskThread) -> None:
        self._go_on(worker)
        self._crew.leave(worker)

    def _held(self) -> dict[int, list[Chunk]]:
        """The chunks that run or have failed, by the index of their range."""
        held: dict[int, list[Chunk]] = {}
        for worker in self._crew.workers:
            if (chunk := worker.chunk) is not None:
                held.setdefault(worker.index, []).append(chunk)
        return held
