"""What a task tells of itself while it runs."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Monitor(Protocol):
    """Told of every step of a task as it happens, so that others can follow it and find out what a dead one had done.

    Derive from it and override what is of interest; the rest does nothing. ``slot`` is a small number, unique among
    the threads that live at one time; 0 is the first thread. The slot of a thread that has ended may be given to a
    later one, but never that of a thread whose chunk failed. ``node`` is an index in the sequence of nodes; ``start``
    and ``end`` are units counted from that node's start, whatever its positions are. The methods must be short and
    must not raise or call the job back: most are called under the scheduler's lock.
    """

    def thread_started(self, slot: int, tid: int, nid: int) -> None:
        """The thread with the system's number ``tid`` takes part; it begins at NUMA node ``nid``, or NO_NODE."""
        return

    def chunk_assigned(self, slot: int, node: int, start: int, end: int) -> None:
        """The thread is about to do this chunk; its previous chunk, if it had one, is finished.

        Always before the ``node_advanced`` that moves that node's position past the chunk: for an observer that keeps
        both, a process killed between the two never makes a chunk look done that was not. Under the lock.
        """
        return

    def node_advanced(self, node: int, position: int) -> None:
        """All units below ``position`` have been handed out. Under the lock."""
        return

    def chunk_done(self, slot: int, node: int, start: int, end: int, busy_ns: int) -> None:
        """The chunk function has returned after ``busy_ns`` nanoseconds. By the thread itself, without a lock."""
        return

    def chunk_failed(self, slot: int, node: int, start: int, end: int) -> None:
        """The chunk function has raised; how much of the chunk is done is not known. Under the lock.

        After ``chunk_done`` of the same chunk too, when the first thread was interrupted just then: it does not count.
        """
        return

    def thread_waits(self, slot: int, why: str) -> None:
        """The thread waits, ``paused`` or ``throttled``, until its next ``chunk_assigned``. Under the lock."""
        return

    def thread_ended(self, slot: int) -> None:
        """The thread takes no further part. Under the lock.

        Of the first thread, interrupted just then, this may come twice.
        """
        return

    def undo_started(self) -> None:
        """All threads have ended and what is done is about to be taken back: from now on nothing counts as done."""
        return


class Silence(Monitor):
    """Nobody listens."""
