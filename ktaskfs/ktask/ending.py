"""The end of a run: no helper outlives it, the caller is put back, what must be undone is, whatever interrupts it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.ktask.outcome import Outcome, TaskError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.ktask.control import Control
    from ktaskfs.ktask.machine import Placement
    from ktaskfs.ktask.node_work import Chunk
    from ktaskfs.ktask.scheduler import Scheduler


ROUNDS: Final = 1000
"""More interrupts than anybody sends in the time: what raises so often is a monitor or machine, which must not."""


class Ending:
    """For the first thread. In the main thread a signal's handler may raise at any moment, and again and again.

    Each step can be done twice, so that after an interrupt the rest is done from the beginning.
    ``base`` is where the calling thread was before, None if it was not moved; ``nice`` its nice value.
    """

    def __init__(self, scheduler: Scheduler, ctl: Control, base: Placement | None, nice: int) -> None:
        self._scheduler = scheduler
        self._ctl = ctl
        self._base = base
        self._nice = nice
        self._rounds = 0
        self._interrupt: BaseException | None = None
        self._undo: Iterator[Chunk] | None = None
        self._undo_failure: tuple[BaseException, Any] | None = None

    def reach(self, raised: BaseException | None) -> None:
        """Return when all is as it must be; ``raised`` is what ended the first thread's work, if anything did."""
        while True:
            try:
                self._approach(raised)
                return
            except BaseException as error:  # at the jump from one round to the next, which stands in no try of its own
                raised = error

    def _approach(self, raised: BaseException | None) -> None:
        """One round after another, until one is not interrupted. What was raised is known to the next round."""
        while self._rounds < 2 * ROUNDS:
            self._rounds += 1
            try:
                if raised is not None and not isinstance(raised, Exception):
                    self._interrupt = self._interrupt or raised
                # A monitor that raises each time in here must not keep the rest from being done.
                if self._rounds <= ROUNDS:
                    if raised is not None:
                        self._scheduler.fail(self._scheduler.first, raised)
                        raised = None
                    self._scheduler.give_up()
                self._await_helpers()
                if self._base is not None:
                    self._ctl.machine.place(self._base)
                self._take_back()
                return
            except BaseException as error:
                raised = error

    def _await_helpers(self) -> None:
        """Wait until all helpers have ended, whose chunks are their last."""
        while self._scheduler.helper_at_work(self._nice):
            self._rounds -= 1  # no number of interrupts ends the waiting
            self._ctl.clock.wait(self._scheduler.first.gate, None)
            self._rounds += 1

    def _take_back(self) -> None:
        """Give what is to be taken back to ``undo_func``, each range once, if the task failed or was cancelled."""
        undo_func = self._ctl.undo_func
        if undo_func is None:
            return
        if self._undo is None:
            if not (self._scheduler.failed or self._scheduler.outcome().cancelled):
                return
            self._undo = iter(self._scheduler.start_undo())
        for span in self._undo:
            try:
                undo_func(span.first, span.last)
            except BaseException as error:
                self._undo_failure = self._undo_failure or (error, span.first)
                if not isinstance(error, Exception):
                    raise

    def conclude(self) -> Outcome:
        """Return or raise what the run comes to."""
        outcome, failure = self._scheduler.outcome(), self._scheduler.release_failure()
        undo_failure, interrupt = self._undo_failure, self._interrupt
        if failure is not None and undo_failure is not None:
            with contextlib.suppress(Exception):  # the client's exception may take no note, as a frozen one does
                failure[0].add_note(f"undo failed at {shown(undo_failure[1])}: {shown(undo_failure[0], repr)}")
        failure = failure or undo_failure
        try:
            if interrupt is not None and failure is not None and failure[0] is not interrupt:
                raise interrupt from failure[0]
            if interrupt is not None:
                raise interrupt
            if failure is not None:
                raise TaskError(*failure, outcome)
            return outcome
        finally:
            # Their tracebacks lead here. Without a cycle, what the chunk function held is freed with the exception.
            self._undo_failure = self._interrupt = None
            del failure, undo_failure, interrupt
