"""Admission of chunks: the pause, the rate limit, and the waits of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktaskfs.ktask.arithmetic import whole_batches
from ktaskfs.ktask.throttle import TokenBucket

if TYPE_CHECKING:
    from ktaskfs.ktask.control import Control
    from ktaskfs.ktask.monitor import Monitor
    from ktaskfs.ktask.task_thread import TaskThread
    from ktaskfs.ktask.task_threads import TaskThreads


class Admission:
    """Has no lock of its own: the scheduler's guards all of it."""

    def __init__(self, ctl: Control, monitor: Monitor, threads: TaskThreads) -> None:
        self._ctl = ctl
        self._monitor = monitor
        self._threads = threads
        self._paused = False
        self._keeper: TaskThread | None = None
        """The one throttled thread with a timed wait; the others wait until they are woken."""
        self._bucket = TokenBucket()
        self.set_rate(ctl.rate)

    def set_paused(self, paused: bool) -> None:
        """Begin or end a pause; the caller wakes the threads."""
        self._paused = paused

    def set_rate(self, rate: float | None) -> None:
        """Allow ``rate`` units per second from now on, None: no limit; the caller wakes the threads."""
        self._bucket.set_rate(rate, self._ctl.clock.monotonic_ns())

    @property
    def limited(self) -> bool:
        """Whether there is a rate limit."""
        return self._bucket.rate is not None

    def delay(self, thread: TaskThread) -> float | None:
        """How many seconds the thread must wait for its chunk; 0.0: it may start now; None: until it is woken.

        A thread that starts wakes the next throttled one.
        """
        seconds = self._bucket.delay(self._ctl.clock.monotonic_ns()) if self.limited else 0.0
        if self._paused or seconds:
            return self._hold_back(thread, seconds)
        if thread.waits:
            self.release(thread)
        return 0.0

    def _hold_back(self, thread: TaskThread, seconds: float) -> float | None:
        why = "paused" if self._paused else "throttled"
        if why != thread.waits:
            thread.waits = why
            self._monitor.thread_waits(thread.slot, why)
        if self._paused:
            return None
        if self._keeper is None:
            self._keeper = thread
        return seconds if self._keeper is thread else None

    def release(self, thread: TaskThread) -> None:
        """The thread no longer waits: it has its chunk or leaves."""
        thread.waits = ""
        if self._keeper is thread:
            self._keeper = next((each for each in self._threads.by_slot if each.waits == "throttled"), None)
            if self._keeper is not None:
                self._keeper.wake()

    def limit(self, size: int) -> int:
        """``size``, or the units that the rate allows in one chunk if they are fewer."""
        if not self.limited:
            return size
        return whole_batches(self._bucket.chunk_limit(size), self._ctl.min_chunk_size, self._ctl.align)

    def spend(self, size: int) -> None:
        """A chunk of ``size`` units starts."""
        self._bucket.spend(size)
