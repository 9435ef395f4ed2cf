"""Sharing among the number of threads that help."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktaskfs.ktask.arithmetic import DEFAULT_MAX_THREADS
from ktaskfs.ktask.finder import Finder
from ktaskfs.ktask.sharing import Sharing

if TYPE_CHECKING:
    from ktaskfs.ktask.control import Control
    from ktaskfs.ktask.monitor import Monitor
    from ktaskfs.ktask.task_thread import TaskThread
    from ktaskfs.ktask.task_threads import TaskThreads
    from ktaskfs.ktask.work import Work


class FoundSharing(Sharing):
    """Begins with the arithmetic's number for each NUMA node. A Finder evaluates the threads' work now and then."""

    __slots__ = ("_clock", "_finder", "_monitor", "_most", "_work")

    def __init__(self, ctl: Control, work: Work, monitor: Monitor) -> None:
        super().__init__(ctl, work.size)
        self._clock = ctl.clock
        self._monitor = monitor
        self._work = work
        self._finder = Finder(work.nodes)
        self._most = 1

    def begin(self, cpus: int, first: TaskThread) -> None:
        self._most = self._nthreads(cpus, self.max_threads or cpus)
        self._begin(cpus)
        self.joined(first)

    def limit(self, cpus: int) -> None:
        before, self._most = self._most, self._nthreads(cpus, self.max_threads or cpus)
        if self._most > before <= self._finder.total:  # nothing else kept it from more
            self._begin(cpus)
        else:
            self._finder.limit(self._most)
            self._count()

    def _begin(self, cpus: int) -> None:
        def start(units: int) -> int:
            return self._arithmetic(units, cpus, DEFAULT_MAX_THREADS)

        self._finder.begin(start, self._most, self._size, self._clock.monotonic_ns())
        self._count()

    def _count(self) -> None:
        self.wanted = max(self._finder.total, 1)

    def _sharers(self, threads: TaskThreads) -> int:
        # Make chunks for the maximum of threads, so that a single thread can be measured, too.
        return max(super()._sharers(threads), self._most)

    def _tail(self) -> int:
        return max(super()._tail(), self._finder.look_at)

    def next_chunk(self, left: int, threads: TaskThreads) -> int:
        finder = self._finder
        if left < finder.look_at:
            if finder.look(self._clock.monotonic_ns(), threads.by_slot, self.chunk, left):
                self._count()
                self.share(threads)
            self.tail = self._tail()
            for nid, number, why in finder.news():
                self._monitor.threads_found(nid, number, why)
        return self.chunk if self._ctl.fixed_chunks else super().next_chunk(left, threads)

    def place(self, threads: TaskThreads) -> int | None:
        return self._finder.place(threads.by_slot)

    def refused(self, threads: TaskThreads) -> None:
        self._finder.refused(threads.by_slot)
        self._count()

    def joined(self, thread: TaskThread) -> None:
        self._finder.join(thread)

    def too_many(self, thread: TaskThread, threads: TaskThreads) -> bool:
        if self._finder.too_many(thread, threads.by_slot):
            index = self.place(threads)
            if index is not None and threads.live <= self.wanted:
                thread.index = index
                return False
        elif self._finder.kept(threads.by_slot) <= self.wanted:
            return False
        self._count()  # fewer, if a group has no work left: otherwise another thread would come in its place
        self.share(threads)
        return True

    def even(self, threads: TaskThreads) -> bool:
        return threads.live <= self.wanted and self._finder.even(threads.by_slot)
