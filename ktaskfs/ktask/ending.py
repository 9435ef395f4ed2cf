"""The end of a run: no helper outlives it, the caller is put back, what must be undone is, whatever interrupts it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ktaskfs.ktask.outcome import Outcome, TaskError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.ktask.control import Control
    from ktaskfs.ktask.machine import Placement
    from ktaskfs.ktask.ranges import Span
    from ktaskfs.ktask.scheduler import Scheduler


ROUNDS: Final = 1000
"""More interrupts than anybody sends in the time: a monitor or machine that raises each time, which it must not."""


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
        self._undo: Iterator[Span] | None = None
        self._undo_failure: tuple[BaseException, Any] | None = None

    def reach(self, raised: BaseException | None) -> None:
        """Return when all is as it must be; ``raised`` is what ended the first thread's work, if anything did."""
        while self._rounds < ROUNDS:
            try:
                raised = self._approach(raised)
                break
            except BaseException as error:  # at the jump from one round to the next, which stands in no try of its own
                raised = error
        if raised is not None:
            raise raised

    def _approach(self, raised: BaseException | None) -> BaseException | None:
        """None when the end is reached; what was raised last if that takes too many rounds."""
        while self._rounds < ROUNDS:
            self._rounds += 1
            try:
                if raised is not None:
                    if not isinstance(raised, Exception):
                        self._interrupt = self._interrupt or raised
                    self._scheduler.fail(self._scheduler.first, raised)
                    raised = None
                self._rounds -= 1  # as long as helpers are at work, no number of interrupts ends the waiting
                self._scheduler.drain(self._nice)
                self._rounds += 1
                if self._base is not None:
                    self._ctl.machine.place(self._base)
                self._take_back()
                return None
            except BaseException as error:
                raised = error
        return raised

    def _take_back(self) -> None:
        """Give what was finished to ``undo_func``, each range once, if the task failed or was cancelled."""
        undo_func = self._ctl.undo_func
        if undo_func is None:
            return
        if self._undo is None:
            if self._scheduler.error is None and not self._scheduler.outcome().cancelled:
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
        failure = self._scheduler.error
        if self._undo_failure is not None and failure is not None:
            error, position = self._undo_failure
            failure[0].add_note(f"undo failed at {shown(position)}: {shown(error, repr)}")
        if self._interrupt is not None:
            raise self._interrupt
        failure = failure or self._undo_failure
        if failure is not None:
            raise TaskError(*failure, self._scheduler.outcome())
        return self._scheduler.outcome()
