"""One thread of a task, as the scheduler sees it."""

from __future__ import annotations

from threading import Lock
from typing import Any, Final

from ktaskfs.ktask.node_work import Chunk
from ktaskfs.span import NO_NODE

FIRST_SLOT: Final = 0
"""The slot of the first thread, the caller of ``run``."""


class TaskThread:
    """The scheduler's lock guards all fields but ``gate``, and ``busy_ns`` and ``placed``, which its thread writes."""

    __slots__ = (  # few objects, as each one that a chunk touches may cost a cache miss
        "at_chunk",
        "busy_ns",
        "chunks",
        "end",
        "first",
        "gate",
        "index",
        "last",
        "live",
        "pinned",
        "placed",
        "slot",
        "start",
        "tid",
        "units",
        "waits",
    )

    def __init__(self, slot: int, index: int, before: TaskThread | None) -> None:
        self.slot = slot
        self.index = index
        """The index of the node that it works on."""
        self.live = True
        """It has not left; it may not have begun yet."""
        self.tid = 0
        """The system's thread number; 0 until the thread has begun."""
        self.pinned = NO_NODE
        """The NUMA node whose CPUs it is to run on."""
        self.at_chunk = False
        """It does the chunk of the next four fields, which are as in Chunk, or failed at it. (To make a Chunk takes
        longer.)"""
        self.start = 0
        self.end = 0
        self.first: Any = None
        self.last: Any = None
        self.waits = ""
        """Why it waits: ``paused``, ``throttled``, or empty if it does not."""
        self.gate = Lock()
        """Not a guard: its thread waits for it, holding no lock, until ``wake`` releases it. Locked at all other
        times."""
        self.gate.acquire()
        self.placed: tuple[int, int] | None = None
        """Where its thread has put itself: the NUMA node of its work, and the node that it is pinned to."""
        # The counts are the slot's: they go on where the thread before ended.
        self.chunks: int = before.chunks if before else 0
        self.units: int = before.units if before else 0
        self.busy_ns: int = before.busy_ns if before else 0

    def wake(self) -> None:
        """Open the gate: the thread that waits there, or comes there next, passes and shuts it.

        The caller holds the scheduler's lock, so only one thread opens a gate at a time.
        """
        if self.gate.locked():
            self.gate.release()

    @property
    def chunk(self) -> Chunk | None:
        """The chunk that it does, or failed at."""
        return Chunk(self.start, self.end, self.first, self.last) if self.at_chunk else None

    @property
    def is_first(self) -> bool:
        return self.slot == FIRST_SLOT
