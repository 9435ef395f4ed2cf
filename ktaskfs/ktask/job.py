"""One run of a task: its threads from start to end."""

from __future__ import annotations

import _thread
from operator import index
from threading import Lock, get_native_id
from typing import TYPE_CHECKING, Any, Final
from weakref import finalize

from ktaskfs.ktask.control import Control, checked_rate
from ktaskfs.ktask.ending import Ending
from ktaskfs.ktask.scheduler import Scheduler
from ktaskfs.span import NO_NODE, Node

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ktaskfs.ktask.machine import Placement
    from ktaskfs.ktask.outcome import Outcome
    from ktaskfs.ktask.task_thread import TaskThread

_LATE: Final = 1.0
"""Seconds that the interpreter's exit waits for a thread that has not begun: more than a busy machine needs."""


class Job:
    """A task that runs once, and can be controlled from any other thread at any time.

    Controls that are called before the run apply from its start; after its end they do nothing. They act on a running
    task before its next chunk is handed out: a chunk that runs is finished first. A signal handler must call neither
    them nor ``outcome``: it may have interrupted the thread that holds the lock.
    """

    def __init__(self, nodes: Iterable[Node], ctl: Control) -> None:
        self._nodes = tuple(nodes) or (Node(None, 0),)  # nothing to do is one range of nothing
        self._ctl = ctl
        self._scheduler = Scheduler(self._nodes, ctl)
        self._claimed = Lock()  # guards nothing; held from the first run on

    def run(self) -> Outcome:
        """Do the task, with the calling thread as its first, and return when all threads have done their last chunk.

        Raises TaskError if a chunk fails. An exception from a signal handler in the calling thread ends the task like a
        failing chunk; KeyboardInterrupt, and others that are not an Exception, pass through unchanged from any thread.
        Raises RuntimeError if the job has been run before. (``ktask_run_numa``, kernel/ktask.c, RFC v1 to v4.)
        """
        machine = self._ctl.machine
        nice = machine.nice()
        base = machine.placement() if any(node.nid != NO_NODE for node in self._nodes) else None
        ending = Ending(self._scheduler, self._ctl, base, nice)
        if not self._claimed.acquire(blocking=False):
            raise RuntimeError("a job runs only once")
        try:
            ending.reach(self._lead(base))
        except BaseException as error:  # raised between the two calls
            ending.reach(error)
        return ending.conclude()

    def _lead(self, base: Placement | None) -> BaseException | None:
        """The first thread's part until no chunk is left to take; returns the exception that ended it, if any.

        In a frame of its own, which is the last that the exception's traceback refers to: ``run`` has no name for the
        exception, so there is no cycle.
        """
        try:
            self._scheduler.begin_task(get_native_id(), base)
            self._start(self._scheduler.hire())
            self._scheduler.await_helpers()
            self._scheduler.work(self._scheduler.first, self._start)
        except BaseException as error:
            return error
        return None

    def cancel(self, *, undo: bool = True) -> None:
        """Hand out no more chunks, and undo finished ones with ``undo_func``, if there is one.

        With ``undo=False`` they stay, for a later job that does the rest. The first call decides.
        """
        self._scheduler.cancel(undo=undo)

    def pause(self) -> None:
        """Hand out no chunk until ``resume`` or ``cancel``."""
        self._scheduler.set_paused(True)

    def resume(self) -> None:
        """End a pause."""
        self._scheduler.set_paused(False)

    def set_max_threads(self, most: int) -> None:
        """Use up to ``most`` threads, as far as the CPUs and the size of the task allow; 0: the default.

        Surplus threads end after their chunk; missing ones start at once, as children of the calling thread,
        with its affinity and memory policy where the task's nodes name no NUMA node. Raises ValueError below 0.
        """
        most = index(most)
        if most < 0:
            raise ValueError(f"max_threads is {most}")
        try:
            self._start(self._scheduler.hire(most))
        except BaseException:  # what a signal's handler raises
            self._scheduler.give_up()
            raise

    def set_rate(self, rate: float | None) -> None:
        """Do up to ``rate`` units per second, over all threads; None: no limit. Raises as Control does."""
        self._scheduler.set_rate(checked_rate(rate))

    def set_nice(self, nice: int) -> None:
        """Give all helpers, now and later, this nice value, -20 to 19 (else ValueError), where that is permitted."""
        nice = index(nice)
        if not -20 <= nice <= 19:
            raise ValueError(f"nice is {nice}")
        self._scheduler.set_nice(nice)

    def outcome(self) -> Outcome:
        """The finished work so far."""
        return self._scheduler.outcome()

    def remaining(self) -> tuple[Node, ...]:
        """The nodes for a later job that does the rest, exact at any time."""
        return self.outcome().remaining()

    def _start(self, helpers: list[TaskThread]) -> None:
        """Start a thread for each; if the system refuses one, go on with those that have started."""
        # Not threading.Thread: its start() waits until the new thread runs, four times slower here, and 256 threads
        # then begin 40 ms apart. The scheduler knows which threads have begun and ended, so nothing else is missed.
        for number, helper in enumerate(helpers):
            came = Lock()  # guards nothing; the helper releases it as it begins
            came.acquire()
            # The thread of a helper that was given up before its start still comes. CPython 3.11 crashes if
            # the interpreter has ended by then, so the interpreter's exit waits for threads that are due. (Job is only
            # an object that lives until then.)
            due = finalize(Job, came.acquire, timeout=_LATE)
            try:
                _thread.start_new_thread(self._help, (helper, came, due))
            except (RuntimeError, MemoryError):
                due.detach()
                self._scheduler.give_up(helpers[number:])
                break

    def _help(self, helper: TaskThread, came: Lock, due: finalize[..., type[Job]]) -> None:
        """A helper thread, from its beginning to its end."""
        due.detach()
        came.release()
        try:
            if self._scheduler.begin(helper, get_native_id()):
                self._scheduler.move(helper)
                if self._ctl.thread_start is not None:
                    self._ctl.thread_start(helper.slot)
                self._scheduler.work(helper, self._start)
        except BaseException as error:
            self._scheduler.fail(helper, error)


def run(start: Any, size: int, ctl: Control) -> Outcome:
    """Do ``size`` units of work from ``start``, on any NUMA node; returns and raises as Job.run.

    After ``ktask_run()`` (include/linux/ktask.h, RFC v1 to v4), whose threads run on the caller's node.
    """
    return Job((Node(start, size),), ctl).run()


def run_numa(nodes: Iterable[Node], ctl: Control) -> Outcome:
    """Do the work of ``nodes``, each range by threads of its NUMA node first; returns and raises as Job.run.

    After ``ktask_run_numa()`` (kernel/ktask.c, RFC v1 to v4), with NO_NODE for its NUMA_NO_NODE.
    """
    return Job(nodes, ctl).run()
