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

    __slots__ = (  # few objects, because each may cost a cache miss per chunk
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
        """It has not left, and may not have begun."""
        self.tid = 0
        """The system's thread number; 0 until the thread has begun."""
        self.pinned = NO_NODE
        """The NUMA node on whose CPUs it must run."""
        self.at_chunk = False
        """Whether it does, or failed at, the chunk in the next four fields, which are as in Chunk. (Making a Chunk
        takes longer.)"""
        self.start = 0
        self.end = 0
        self.first: Any = None
        self.last: Any = None
        self.waits = ""
        """The reason of its wait: ``paused``, ``throttled``, or empty."""
        self.gate = Lock()
        """Not a guard: its thread waits for it, holding no lock, until ``wake`` releases it. Locked at all other
        times."""
        self.gate.acquire()
        self.placed: tuple[int, int] | None = None
        """Its placement: the NUMA node of its work, and the node to which it is pinned."""
        # The counts belong to the slot: they continue those of its previous thread.
        self.chunks: int = before.chunks if before else 0
        self.units: int = before.units if before else 0
        self.busy_ns: int = before.busy_ns if before else 0

    def wake(self) -> None:
        """Open the gate: the thread that waits there, or arrives next, passes and closes it.

        The caller holds the scheduler's lock, so only one thread opens a gate at a time.
        """
        if self.gate.locked():
            self.gate.release()

    @property
    def chunk(self) -> Chunk | None:
        """Its current or failed chunk."""
        return Chunk(self.start, self.end, self.first, self.last) if self.at_chunk else None

    @property
    def is_first(self) -> bool:
        return self.slot == FIRST_SLOT
