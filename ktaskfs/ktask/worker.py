"""One thread of a task, as the scheduler sees it."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Final

from ktaskfs.ktask.machine import NO_NODE

if TYPE_CHECKING:
    from ktaskfs.ktask.ranges import Span

FIRST_SLOT: Final = 0
"""The slot of the first thread, the caller of ``run``."""


class Worker:
    """The scheduler's lock guards all fields but ``gate``; ``busy_ns`` and ``placed`` are the thread's own."""

    def __init__(self, slot: int, index: int, before: Worker | None) -> None:
        self.slot = slot
        self.index = index
        """Of the range that it works on."""
        self.live = True
        """It has not left; its thread may not have begun yet."""
        self.tid = 0
        """The system's thread number; 0 until the thread has begun."""
        self.pinned = NO_NODE
        """The NUMA node whose CPUs it is to run on."""
        self.chunk: Span | None = None
        """The chunk that it does, or failed at."""
        self.waits = ""
        """Why it waits: ``paused``, ``throttled``, or not at all."""
        self.gate = Lock()
        """Where its thread waits until it is woken: shut, but for a moment."""
        self.gate.acquire()
        self.placed: tuple[int, int] | None = None
        """Where its thread has put itself: the NUMA node of its work, and the one it is pinned to."""
        # The counts are the slot's: they go on where the thread before ended.
        self.chunks: int = before.chunks if before else 0
        self.units: int = before.units if before else 0
        self.busy_ns: int = before.busy_ns if before else 0

    def wake(self) -> None:
        """Open the gate: whoever waits there, or comes there next, goes through, and shuts it. Under the lock."""
        if self.gate.locked():
            self.gate.release()

    @property
    def is_first(self) -> bool:
        return self.slot == FIRST_SLOT
