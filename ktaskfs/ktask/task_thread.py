"""One thread of a task, as the scheduler sees it."""

from __future__ import annotations

from threading import Lock
from typing import Any, Final

from ktaskfs.ktask.node_work import Chunk
from ktaskfs.span import NO_NODE

FIRST_SLOT: Final = 0
"""The slot of the first thread, the caller of ``run``."""


class TaskThread:
    """The scheduler's lock guards all fields but ``gate``; ``busy_ns`` and ``placed`` are the thread's own."""

    __slots__ = (  # of what is touched for every chunk as little as can be
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
        """Of the range that it works on."""
        self.live = True
        """It has not left; its thread may not have begun yet."""
        self.tid = 0
        """The system's thread number; 0 until the thread has begun."""
        self.pinned = NO_NODE
        """The NUMA node whose CPUs it is to run on."""
        self.at_chunk = False
        """It does a chunk, or failed at it: the one from here on, as in Chunk. (No Chunk: to make one takes longer.)"""
        self.start = 0
        self.end = 0
        self.first: Any = None
        self.last: Any = None
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
    def chunk(self) -> Chunk | None:
        """The chunk that it does, or failed at."""
        return Chunk(self.start, self.end, self.first, self.last) if self.at_chunk else None

    @property
    def is_first(self) -> bool:
        return self.slot == FIRST_SLOT
