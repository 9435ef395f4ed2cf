"""The shares of a task's threads in its work: their number, and their chunk size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktaskfs.ktask.arithmetic import chunk_size, nthreads, tail_chunk_size, tail_size

if TYPE_CHECKING:
    from ktaskfs.ktask.control import Control
    from ktaskfs.ktask.task_thread import TaskThread
    from ktaskfs.ktask.task_threads import TaskThreads


class Sharing:
    """Everything that a thread reads to take its next chunk, in one object that changes only with a control or a
    thread.

    The number of threads is the arithmetic's (``fixed``). Has no lock of its own: the scheduler's guards all of it.
    """

    __slots__ = ("_ctl", "_size", "chunk", "max_threads", "steady", "tail", "threads", "wanted")

    def __init__(self, ctl: Control, size: int) -> None:
        self._ctl = ctl
        self._size = size
        self.max_threads = ctl.max_threads
        """The maximum threads, including the first; 0: the default of Control."""
        self.wanted = 1
        """Threads that the task should have, if the budget allows them."""
        self.threads = 1
        """Threads that share the work."""
        self.chunk = size
        """Units of one chunk."""
        self.tail = 0
        """The number of units left below which ``next_chunk`` gives the size of the next chunk."""
        self.steady = False
        """No pause, rate limit or thread change is pending: a thread may take its next chunk without ``_turn``."""

    def begin(self, cpus: int, first: TaskThread) -> None:
        """The work begins, on a machine of ``cpus`` CPUs, and ``first`` is its first thread."""
        self.limit(cpus)
        self.joined(first)

    def limit(self, cpus: int) -> None:
        """``max_threads`` has changed: compute ``wanted`` for a machine of ``cpus`` CPUs."""
        self.wanted = self._nthreads(cpus, self.max_threads)

    def _nthreads(self, cpus: int, max_threads: int) -> int:
        return self._arithmetic(self._size, cpus, max_threads)

    def _arithmetic(self, units: int, cpus: int, max_threads: int) -> int:
        ctl = self._ctl
        return nthreads(units, ctl.min_chunk_size, cpus, max_threads, align=ctl.align)

    def share(self, threads: TaskThreads) -> None:
        """Compute the chunk size for the threads that live."""
        ctl = self._ctl
        self.threads = min(threads.live, self.wanted)
        self.chunk = chunk_size(
            self._size,
            ctl.min_chunk_size,
            self._sharers(threads),
            max_chunk_size=ctl.max_chunk_size,
            align=ctl.align,
            load_bal_shift=ctl.load_bal_shift,
        )
        self.tail = self._tail()
        self.steady = False

    def _sharers(self, threads: TaskThreads) -> int:
        """The number of threads for the chunk size."""
        # As in the kernel, a task that always had one thread is one chunk. After a reduction to one thread, that
        # thread gets smaller chunks, so that controls can reach it.
        return self.threads if threads.most <= 1 else max(self.threads, 2)

    def _tail(self) -> int:
        return 0 if self._ctl.fixed_chunks else tail_size(self.chunk, self.threads)

    def next_chunk(self, left: int, threads: TaskThreads) -> int:
        """Units of the next chunk when only ``left`` units are left to hand out, fewer than ``tail``."""
        ctl = self._ctl
        return tail_chunk_size(left, self.chunk, ctl.min_chunk_size, self.threads, align=ctl.align)

    # Which threads work where.

    def place(self, threads: TaskThreads) -> int | None:
        """The index of the node that a new helper begins with; None: helpers are spread evenly over the nodes."""
        return None

    def refused(self, threads: TaskThreads) -> None:
        """There are no more threads than these."""
        self.wanted = threads.live

    def joined(self, thread: TaskThread) -> None:
        """The thread takes part from now on."""

    def too_many(self, thread: TaskThread, threads: TaskThreads) -> bool:
        """Whether ``thread``, a helper that asks for a chunk, must leave. It may get another node instead."""
        return threads.live > self.threads

    def even(self, threads: TaskThreads) -> bool:
        """Whether no thread must leave."""
        return threads.live <= self.threads
