"""All threads of a task: hired, begun, and left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktaskfs.ktask.budget import HelperBudget
from ktaskfs.ktask.outcome import ThreadShare
from ktaskfs.ktask.task_thread import FIRST_SLOT, TaskThread
from ktaskfs.span import NO_NODE

if TYPE_CHECKING:
    from ktaskfs.ktask.control import Control
    from ktaskfs.ktask.monitor import Monitor
    from ktaskfs.ktask.node_work import Chunk


class TaskThreads:
    """Has no lock of its own: the scheduler's guards all of it."""

    def __init__(self, ctl: Control, monitor: Monitor, nodes: int) -> None:
        self._machine = ctl.machine
        self._monitor = monitor
        self._cpu_percent = ctl.cpu_percent
        self._nodes = nodes
        self._budget = ctl.budget  # None: the task's own, which is made when it is needed
        self._nice = ctl.nice
        self._raised: TaskThread | None = None  # the helper that was raised, as the first thread waits for it
        self.first = TaskThread(FIRST_SLOT, 0, None)
        """The calling thread, which takes part from ``begin_first`` on."""
        self.first.live = False
        self.by_slot = [self.first]
        """The latest thread of each slot."""
        self.live = 0
        """Threads that have not left."""
        self.begun = 0
        """Threads that have begun and not left."""
        self.most = 0
        """The largest value of ``begun`` so far."""

    def begin_first(self, tid: int, nid: int, *, moves: bool) -> None:
        """The calling thread takes part, and helpers may be hired from now on; ``moves``: threads go to their nodes."""
        if moves:
            self._make_budget()  # now, while it may still use all its CPUs
        self.first.live = True
        self.live = 1
        self._begin(self.first, tid, nid)

    def begin_helper(self, helper: TaskThread, tid: int, nid: int) -> None:
        """A live helper has started, to work on NUMA node ``nid``."""
        self._machine.set_nice(tid, self._nice)
        self._begin(helper, tid, nid)
        self.pin(helper, nid)

    def _begin(self, thread: TaskThread, tid: int, nid: int) -> None:
        thread.tid = tid
        self.begun += 1
        self.most = max(self.most, self.begun)
        self.first.wake()
        self._monitor.thread_started(thread.slot, tid, nid)

    def hire(self, index: int | None) -> TaskThread | None:
        """Another helper to start, or None if the budget is spent.

        It begins with the node of ``index``; None: helpers are spread evenly over the nodes.
        """
        budget = self._make_budget()
        before = next((t for t in self.by_slot if not t.live), None) if self.live < len(self.by_slot) else None
        slot = before.slot if before else len(self.by_slot)
        helper = TaskThread(slot, slot % self._nodes if index is None else index, before)
        # Noted before the budget is asked: after an interrupt in between it is found here, and dismissed.
        self.by_slot[slot : slot + 1] = [helper]
        self.live += 1
        if not budget.hire(helper):
            helper.live = False
            self.live -= 1
            return None
        return helper

    def _make_budget(self) -> HelperBudget:
        if self._budget is None:
            self._budget = HelperBudget(self._machine, self._cpu_percent)
        return self._budget

    def pin(self, thread: TaskThread, nid: int) -> None:
        """``thread`` now works on NUMA node ``nid``; a helper is pinned there only if the budget allows it."""
        granted = thread.is_first or (self._budget is not None and self._budget.pin(thread, nid))
        thread.pinned = nid if granted else NO_NODE

    def leave(self, thread: TaskThread) -> None:
        """The thread leaves; does nothing if it has left already."""
        if not thread.live:
            return
        self.first.wake()
        # The first thread retries after an interrupt, so it reports before it leaves, whether it leaves itself or gives
        # a helper up. A helper's own thread is never interrupted: it leaves before it reports, so that nobody waits for
        # it for ever if the report raises.
        by_helper = thread.tid != 0 and not thread.is_first
        if not by_helper:
            self._report_end(thread)
        thread.live = False
        self.live -= 1
        self.begun -= thread.tid != 0
        if by_helper:
            self._report_end(thread)

    def _report_end(self, thread: TaskThread) -> None:
        if self._budget is not None:
            self._budget.dismiss(thread)
        if thread.tid:
            self._monitor.thread_ended(thread.slot)

    def missing(self) -> list[TaskThread]:
        """The helpers that were hired and have not begun."""
        return [thread for thread in self.by_slot if thread.live and not thread.tid]

    def helper(self) -> TaskThread | None:
        """A helper that has begun and not left, if there is any."""
        return next((thread for thread in self.by_slot[1:] if thread.live and thread.tid), None)

    def set_nice(self, nice: int) -> None:
        """Give all helpers this nice value, now and later; a helper that was raised is raised again afterwards."""
        self._nice = nice
        for thread in self.by_slot:
            if thread.live and thread.tid and not thread.is_first:
                self._machine.set_nice(thread.tid, nice)
        self._raised = None
        self.first.wake()

    def raise_to(self, helper: TaskThread, nice: int) -> None:
        """Give a helper the nice value of the thread that waits for it, if that is the better value."""
        if nice < self._nice and helper is not self._raised:
            self._raised = helper
            self._machine.set_nice(helper.tid, nice)

    def wake_all(self) -> None:
        """Open every gate."""
        for thread in self.by_slot:
            thread.wake()

    def held(self) -> dict[int, list[Chunk]]:
        """The chunks that run or have failed, by the index of their node."""
        held: dict[int, list[Chunk]] = {}
        for thread in self.by_slot:
            if (chunk := thread.chunk) is not None:
                held.setdefault(thread.index, []).append(chunk)
        return held

    def shares(self) -> list[ThreadShare]:
        """The work done by the threads of each slot."""
        return [
            ThreadShare(thread.slot, thread.chunks, thread.units, thread.busy_ns / 1e9)
            for thread in self.by_slot
            if thread.tid or thread.chunks
        ]
