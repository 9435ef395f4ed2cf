"""The scheduler: the state of a running task under one lock, and the loop of each thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ktaskfs.ktask.admission import Admission
from ktaskfs.ktask.found_sharing import FoundSharing
from ktaskfs.ktask.lock import OwnedLock
from ktaskfs.ktask.machine import Placement, place_on_node
from ktaskfs.ktask.monitor import Silence
from ktaskfs.ktask.outcome import Outcome
from ktaskfs.ktask.sharing import Sharing
from ktaskfs.ktask.task_threads import TaskThreads
from ktaskfs.ktask.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ktaskfs.ktask.control import Control
    from ktaskfs.ktask.node_work import Chunk
    from ktaskfs.ktask.task_thread import TaskThread
    from ktaskfs.span import Node

_HIRE: Final = -1.0
"""Instead of seconds to wait: the thread must start helpers, and ask again."""
_TOGETHER_NS: Final = 10_000_000
"""The first thread waits for the helpers to begin, but no longer than this (10 ms) on a busy machine."""


class Scheduler:
    """Hands out chunks, counts finished work, and obeys the controls.

    A thread waits at its own gate, without the lock: a raising signal handler may interrupt the first thread there,
    and its locks must be known then. (``threading.Condition`` releases its lock and takes it
    again.)
    """

    def __init__(self, nodes: Sequence[Node], ctl: Control) -> None:
        self._ctl = ctl
        self._clock = ctl.clock
        self._monitor = Silence() if ctl.monitor is None else ctl.monitor
        self._machine = ctl.machine

        # Guards every field below, and those of Work, NodeWork, TaskThreads, TaskThread (except its ``gate``,
        # ``busy_ns`` and ``placed``), Sharing, Admission and TokenBucket. First in the order: no lock of this package
        # is held when it is taken; a HelperBudget's may be taken under it, and gates are opened.
        self._lock = OwnedLock()
        self._work = Work(nodes, self._machine.node_cpus)
        self._threads = TaskThreads(ctl, self._monitor, len(nodes))
        found = ctl.threads == "found"
        self._sharing = FoundSharing(ctl, self._work, self._monitor) if found else Sharing(ctl, self._work.size)
        self._admission = Admission(ctl, self._monitor, self._threads)
        self.first = self._threads.first
        self._cpus = 1
        self._base: Placement | None = None
        self._began_ns: int | None = None
        self._ended_ns: int | None = None
        self._cancelled = False
        self.undoes = True
        """Whether a cancelled task is undone; set before ``_cancelled``, never afterwards."""
        self.failed = False
        self._failure: tuple[BaseException, Any] | None = None
        self._units_undone: int | None = None

    # Controls, from any thread.

    def cancel(self, *, undo: bool) -> None:
        with self._lock:
            if self._ended_ns is None and not self._cancelled:
                self.undoes = undo
                self._cancelled = True
                self._disturb()

    def set_paused(self, paused: bool) -> None:
        with self._lock:
            self._admission.set_paused(paused)
            self._disturb()

    def set_rate(self, rate: float | None) -> None:
        with self._lock:
            self._admission.set_rate(rate)
            self._disturb()

    def set_nice(self, nice: int) -> None:
        with self._lock:
            self._threads.set_nice(nice)

    # The life of a thread.

    def begin_task(self, tid: int, base: Placement | None) -> None:
        """The first thread takes part; ``base`` is the allowed placement, None: threads are not moved."""
        with self._lock:
            self._base, self._cpus = base, self._machine.cpus()
            began_ns = self._clock.monotonic_ns()
            self._threads.begin_first(tid, self._nid(self.first), moves=base is not None)
            self._sharing.begin(self._cpus, self.first)
            self._began_ns = began_ns

    def hire(self, max_threads: int | None = None) -> list[TaskThread]:
        """The helpers to start now; each must ``begin`` or be given up.

        ``max_threads`` is a new limit, None: unchanged. Surplus helpers end when they ask for a chunk.
        """
        with self._lock:
            sharing, threads = self._sharing, self._threads
            if max_threads is not None:
                sharing.max_threads = max_threads
            if self._began_ns is None or self._over():
                return []
            if max_threads is not None:
                sharing.limit(self._cpus)
            helpers: list[TaskThread] = []
            while threads.live < sharing.wanted:
                helper = threads.hire(sharing.place(threads))
                if helper is None:
                    sharing.refused(threads)
                    break
                helpers.append(helper)
            self._share()
            self._threads.wake_all()
            return helpers

    def begin(self, helper: TaskThread, tid: int) -> bool:
        """A helper thread has started, and must ``move``; False: it is too late and must end without any work."""
        with self._lock:
            if helper.live:
                self._threads.begin_helper(helper, tid, self._nid(helper))
                self._sharing.joined(helper)
            return helper.live

    def await_helpers(self) -> None:
        """For the first thread: wait a moment until all helpers have begun, so that all take chunks from then on.

        A new thread maps memory (its stack, an arena of malloc(3)) before it can ask for a chunk, and waits for that as
        long as another one populates a page in the same address space: 120 ms for a gigantic page (measured).
        """
        end = self._clock.monotonic_ns() + _TOGETHER_NS
        while (left := end - self._clock.monotonic_ns()) > 0:
            with self._lock:
                if self._threads.begun >= self._threads.live:
                    break
            self._clock.wait(self.first.gate, left / 1e9)

    def give_up(self, helpers: Sequence[TaskThread] | None = None) -> None:
        """Give up those of ``helpers`` (None: of all) that have not begun; a late thread must end."""
        with self._lock:
            for helper in self._threads.missing():
                if helpers is None or helper in helpers:
                    self._leave(helper)
                    self._sharing.refused(self._threads)
            if self._began_ns is not None and not self._over():
                self._share()

    def work(self, thread: TaskThread, start_helpers: Callable[[list[TaskThread]], None]) -> None:
        """The calling thread does chunks until none are left for it; raises the chunk function's exceptions.

        ``start_helpers`` starts those that were hired, when more threads than before are to be measured.

        One function, few calls and few fields from one chunk to the next: a thread whose chunk has slept finds the
        CPU's caches cold, and every object that it touches costs a miss.
        """
        ctl, work, numa = self._ctl, self._work, self._base is not None
        acquire, release = self._lock.acquire, self._lock.release
        sharing, admission = self._sharing, self._admission
        thread_func, iter_func, now_ns = ctl.thread_func, ctl.iter_func, self._clock.monotonic_ns
        monitor, watched = self._monitor, ctl.monitor is not None
        assigned, advanced, chunk_done = monitor.chunk_assigned, monitor.node_advanced, monitor.chunk_done
        slot, index, size = thread.slot, thread.index, 0
        node_work = work.nodes[index]
        try:
            while True:
                wait: float | None = 0.0
                acquire()
                if thread.at_chunk:
                    thread.at_chunk = False
                    thread.chunks += 1
                    thread.units += size
                    node_work.chunks += 1
                steady = sharing.steady
                if not (steady and node_work.left):
                    wait = self._turn(thread)
                    if not thread.live:
                        release()
                        return
                    index = thread.index
                    node_work = work.nodes[index]
                if wait == 0.0:
                    if numa and node_work.node.nid != thread.pinned:
                        self._threads.pin(thread, node_work.node.nid)
                    size = sharing.chunk
                    if work.left < sharing.tail:
                        size = sharing.next_chunk(work.left, self._threads)
                    if not steady:
                        size = admission.limit(size)
                    if size > node_work.left:
                        size = node_work.left
                    first = node_work.at
                    last = iter_func(first, size)
                    start = node_work.node.size - node_work.left
                    end = start + size
                    if watched:
                        assigned(slot, index, start, end)
                    # No call in this block: a signal's handler may raise at a call, and must find all of it or nothing.
                    thread.start = start
                    thread.end = end
                    thread.first = first
                    thread.last = last
                    thread.at_chunk = True
                    node_work.at = last
                    node_work.left -= size
                    work.left -= size
                    if watched:
                        advanced(index, end)
                    if not steady:
                        admission.spend(size)
                release()
                if wait != 0.0:
                    start_helpers(self.hire()) if wait == _HIRE else self._clock.wait(thread.gate, wait)
                    continue
                if numa and thread.placed != (node_work.node.nid, thread.pinned):
                    self.move(thread)
                began_ns = now_ns()
                thread_func(first, last)
                busy_ns = now_ns() - began_ns
                thread.busy_ns += busy_ns
                if watched:
                    chunk_done(slot, index, start, end, busy_ns)
        except BaseException:
            # As in OwnedLock, of which ``with`` would take longer here.
            try:
                release()
            except RuntimeError:
                pass  # it was not held
            finally:
                raise

    def move(self, thread: TaskThread) -> None:
        """Move the calling thread, ``thread``, to its node.

        Without the lock: no other thread changes what is read here.
        """
        if self._base is None:
            return
        node_work = self._work.nodes[thread.index]
        thread.placed = node_work.node.nid, thread.pinned
        cpus = node_work.cpus if thread.pinned == node_work.node.nid else frozenset[int]()
        self._machine.place(place_on_node(self._base, node_work.node.nid, cpus))

    def fail(self, thread: TaskThread, error: BaseException) -> None:
        """The thread ends with ``error``; after the first failure no chunk is handed out."""
        with self._lock:
            chunk = thread.chunk
            if not self.failed:
                self._failure = error, (chunk.first if chunk else self._work.nodes[thread.index].at)
                self.failed = True
                self._sharing.steady = False
            try:
                self._threads.wake_all()
                if chunk is not None:
                    self._monitor.chunk_failed(thread.slot, thread.index, chunk.start, chunk.end)
            finally:
                self._leave(thread)

    def helper_at_work(self, nice: int) -> bool:
        """Whether the first thread, with no chunk left, must wait at its gate for a helper that has begun.

        One helper at a time is raised to ``nice`` (v4's answer to starvation).
        """
        with self._lock:
            helper = self._threads.helper()
            if helper is not None:
                self._threads.raise_to(helper, nice)
            elif self._ended_ns is None:
                self._ended_ns = self._clock.monotonic_ns()
            return helper is not None

    # The state of the task.

    def release_failure(self) -> tuple[BaseException, Any] | None:
        """The first exception, and the start of its chunk; not kept, because its traceback refers to this object."""
        with self._lock:
            failure, self._failure = self._failure, None
            return failure

    def start_undo(self) -> list[Chunk]:
        """The ranges to undo: the finished ones, which no longer count as done, then, if asked, the failed chunks.

        Called when no thread works, so that every chunk still held has failed.
        """
        with self._lock:
            held = self._threads.held()
            finished = self._work.finished(held)
            self._units_undone = sum(each.end - each.start for each in finished)
            self._monitor.undo_started()
            return finished + self._work.begun(held) if self._ctl.undo_failed else finished

    def outcome(self) -> Outcome:
        with self._lock:
            per_node, left = self._work.shares(self._threads.held(), undone=self._units_undone is not None)
            now = self._clock.monotonic_ns() if self._ended_ns is None else self._ended_ns
            return Outcome(
                units_done=sum(share.units for share in per_node),
                units_undone=self._units_undone or 0,
                chunks=sum(share.chunks for share in per_node),
                threads=self._threads.most,
                seconds=0.0 if self._began_ns is None else (now - self._began_ns) / 1e9,
                cancelled=self._cancelled and self._work.left > 0,
                per_thread=tuple(self._threads.shares()),
                per_node=tuple(per_node),
                left=tuple(left),
            )

    # The lock is held below.

    def _disturb(self) -> None:
        """A control has changed: every thread asks for its turn before its next chunk, waiting threads at once."""
        self._sharing.steady = False
        self._threads.wake_all()

    def _over(self) -> bool:
        return self._cancelled or self.failed or self._work.left == 0

    def _nid(self, thread: TaskThread) -> int:
        return self._work.nodes[thread.index].node.nid

    def _share(self) -> None:
        self._sharing.share(self._threads)

    def _turn(self, thread: TaskThread) -> float | None:
        """The thread asks for a chunk: it leaves, waits by Admission.delay, or gets a node with work."""
        sharing, threads = self._sharing, self._threads
        if self._over() or (not thread.is_first and sharing.too_many(thread, threads)):
            self._leave(thread)
            return 0.0
        wait = self._admission.delay(thread)
        if wait == 0.0:
            if threads.live < sharing.wanted:
                return _HIRE
            thread.index = self._work.choose(thread.index, self._ctl.pick)
            sharing.steady = not self._admission.limited and sharing.even(threads)
        return wait

    def _leave(self, thread: TaskThread) -> None:
        self._admission.release(thread)
        self._threads.leave(thread)
