"""The end of a run despite interrupts: helpers end, the caller's placement is restored, undo is done."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from ktaskfs.ktask.outcome import Outcome, TaskError, safe_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.ktask.control import Control
    from ktaskfs.ktask.machine import Placement
    from ktaskfs.ktask.node_work import Chunk
    from ktaskfs.ktask.scheduler import Scheduler


ROUNDS: Final = 1000
"""More rounds than real interrupts cause. After so many, a monitor or machine raises each time, which it must not."""


class Ending:
    """For the first thread. If it is the main thread, a signal's handler may raise at any moment, again and again.

    Each step can be done twice, so after an interrupt all steps are done again from the first.
    ``base`` is the calling thread's placement before the run, None if it is not moved; ``nice`` is its nice value.
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
        """Return when the run has ended; ``raised`` is the exception that ended the first thread's work, if any."""
        while True:
            try:
                self._approach(raised)
                return
            except BaseException as error:  # raised between two rounds, outside the try of either
                raised = error

    def _approach(self, raised: BaseException | None) -> None:
        """Repeat the steps until no interrupt comes; each round takes note of the exception that ended the last."""
        while self._rounds < 2 * ROUNDS:
            self._rounds += 1
            try:
                if raised is not None and not isinstance(raised, Exception):
                    self._interrupt = self._interrupt or raised
                # A monitor that raises each time here must not prevent the steps below.
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
        """Wait until all helpers have finished their last chunk and ended."""
        while self._scheduler.helper_at_work(self._nice):
            self._rounds -= 1  # an interrupted wait is not counted: no number of interrupts ends it
            self._ctl.clock.wait(self._scheduler.first.gate, None)
            self._rounds += 1

    def _take_back(self) -> None:
        """Pass the ranges to undo to ``undo_func``, each once, if the task failed or was cancelled."""
        undo_func = self._ctl.undo_func
        if undo_func is None:
            return
        if self._undo is None:
            cancelled = self._scheduler.undoes and self._scheduler.outcome().cancelled
            if not (self._scheduler.failed or cancelled):
                return
            self._undo = iter(self._scheduler.start_undo())
        for chunk in self._undo:
            try:
                undo_func(chunk.first, chunk.last)
            except BaseException as error:
                self._undo_failure = self._undo_failure or (error, chunk.first)
                if not isinstance(error, Exception):
                    raise

    def conclude(self) -> Outcome:
        """Return the outcome of the run, or raise its interrupt or failure."""
        outcome, failure = self._scheduler.outcome(), self._scheduler.release_failure()
        undo_failure, interrupt = self._undo_failure, self._interrupt
        if failure is not None and undo_failure is not None:
            with contextlib.suppress(Exception):  # the client's exception may refuse a note, as a frozen class does
                failure[0].add_note(f"undo failed at {safe_text(undo_failure[1])}: {safe_text(undo_failure[0], repr)}")
        failure = failure or undo_failure
        if interrupt is None and failure is not None and not isinstance(failure[0], Exception):
            interrupt = failure[0]  # a helper's: which thread a chunk meets is chance
        try:
            if interrupt is not None and failure is not None and failure[0] is not interrupt:
                raise interrupt from failure[0]
            if interrupt is not None:
                raise interrupt
            if failure is not None:
                raise TaskError(*failure, outcome)
            return outcome
        finally:
            # Their tracebacks refer to this frame. Without a cycle, freeing the exception frees what thread_func held.
            self._undo_failure = self._interrupt = None
            del failure, undo_failure, interrupt
