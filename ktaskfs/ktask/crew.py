"""The threads of a task: who is hired, who has begun, who has left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktaskfs.ktask.budget import HelperBudget
from ktaskfs.ktask.task_thread import FIRST_SLOT, TaskThread
from ktaskfs.span import NO_NODE

if TYPE_CHECKING:
    from ktaskfs.ktask.control import Control
    from ktaskfs.ktask.monitor import Monitor


class Crew:
    """Has no lock of its own: the scheduler's guards all of it, and the fields of TaskThread."""

    def __init__(self, ctl: Control, monitor: Monitor, ranges: int) -> None:
        self._machine = ctl.machine
        self._monitor = monitor
        self._cpu_percent = ctl.cpu_percent
        self._ranges = ranges
        self._budget = ctl.budget  # None: the task's own, which is made when it is needed
        self._nice = ctl.nice
        self._raised: TaskThread | None = None  # the helper that the first thread, which waits for it, has raised
        self.first = TaskThread(FIRST_SLOT, 0, None)
        """The calling thread's, which takes part from ``begin_first`` on."""
        self.first.live = False
        self.workers = [self.first]
        """By slot, the latest of each."""
        self.live = 0
        """Workers that have not left."""
        self.begun = 0
        """Those of them whose thread has begun."""
        self.most = 0
        """The most that had begun at one time."""

    def begin_first(self, tid: int, nid: int, *, moves: bool) -> None:
        """The calling thread takes part, and helpers may be hired from now on; ``moves``: threads go to their nodes."""
        if moves:
            self._make_budget()  # now, while it may still use all its CPUs
        self.first.live = True
        self.live = 1
        self._begin(self.first, tid, nid)

    def begin_helper(self, worker: TaskThread, tid: int, nid: int) -> None:
        """The thread of a worker that is still live has started, to work on NUMA node ``nid``."""
        self._machine.set_nice(tid, self._nice)
        self._begin(worker, tid, nid)
        self.pin(worker, nid)

    def _begin(self, worker: TaskThread, tid: int, nid: int) -> None:
        worker.tid = tid
        self.begun += 1
        self.most = max(self.most, self.begun)
        self.first.wake()
        self._monitor.thread_started(worker.slot, tid, nid)

    def hire(self) -> TaskThread | None:
        """One more, whose thread is to be started, if the budget has it."""
        budget = self._make_budget()
        before = next((w for w in self.workers if not w.live), None) if self.live < len(self.workers) else None
        slot = before.slot if before else len(self.workers)
        worker = TaskThread(slot, slot % self._ranges, before)
        # It is one of ours before the budget is asked: after an interrupt in between it can still be dismissed.
        self.workers[slot : slot + 1] = [worker]
        self.live += 1
        if not budget.hire(worker):
            worker.live = False
            self.live -= 1
            return None
        return worker

    def _make_budget(self) -> HelperBudget:
        if self._budget is None:
            self._budget = HelperBudget(self._machine, self._cpu_percent)
        return self._budget

    def pin(self, worker: TaskThread, nid: int) -> None:
        """``worker`` works on NUMA node ``nid`` now; a helper is pinned there only while the budget allows it."""
        granted = worker.is_first or (self._budget is not None and self._budget.pin(worker, nid))
        worker.pinned = nid if granted else NO_NODE

    def leave(self, worker: TaskThread) -> None:
        """The thread takes no further part."""
        if not worker.live:
            return
        self.first.wake()
        # Who is interrupted here comes again, and so tells before the worker is gone. A helper's own thread never is;
        # it is gone before it tells, for what raises there must not make others wait for it for ever.
        by_helper = worker.tid != 0 and not worker.is_first
        if not by_helper:
            self._tell_end(worker)
        worker.live = False
        self.live -= 1
        self.begun -= worker.tid != 0
        if by_helper:
            self._tell_end(worker)

    def _tell_end(self, worker: TaskThread) -> None:
        if self._budget is not None:
            self._budget.dismiss(worker)
        if worker.tid:
            self._monitor.thread_ended(worker.slot)

    def missing(self) -> list[TaskThread]:
        """Those whose thread has not begun."""
        return [worker for worker in self.workers if worker.live and not worker.tid]

    def helper(self) -> TaskThread | None:
        """One that has begun and not left, if there is any."""
        return next((worker for worker in self.workers[1:] if worker.live and worker.tid), None)

    def set_nice(self, nice: int) -> None:
        """Give all helpers this nice value, now and later; who was raised is to be raised again."""
        self._nice = nice
        for worker in self.workers:
            if worker.live and worker.tid and not worker.is_first:
                self._machine.set_nice(worker.tid, nice)
        self._raised = None
        self.first.wake()

    def raise_to(self, helper: TaskThread, nice: int) -> None:
        """Give one helper the nice value of whoever waits for it, if that is the better one."""
        if nice < self._nice and helper is not self._raised:
            self._raised = helper
            self._machine.set_nice(helper.tid, nice)

    def wake_all(self) -> None:
        """Open every gate."""
        for worker in self.workers:
            worker.wake()
