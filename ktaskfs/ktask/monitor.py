"""The reports of a running task."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Monitor(Protocol):
    """Observes every step of a task, to follow it, and to know its finished work if its process dies.

    Derive from it and override the methods of interest; the others do nothing. ``slot`` is a small number, unique among
    the threads that live at one time; 0 is the first thread. A later thread may get the slot of a thread that has
    ended, but never the slot of a thread whose chunk failed. ``node`` is an index in the sequence of nodes; ``start``
    and ``end`` are units counted from that node's start, whatever its positions are. The methods must be short and
    must not raise or call the job: most are called under the scheduler's lock.
    """

    def thread_started(self, slot: int, tid: int, nid: int) -> None:
        """The thread with the system's number ``tid`` takes part; it begins at NUMA node ``nid``, or NO_NODE."""
        return

    def chunk_assigned(self, slot: int, node: int, start: int, end: int) -> None:
        """The thread is about to do this chunk; its previous chunk, if it had one, is finished.

        Always before the ``node_advanced`` that moves that node's position past the chunk: to an observer that keeps
        both, no unfinished chunk looks done if the process is killed between the two. Under the lock.
        """
        return

    def node_advanced(self, node: int, position: int) -> None:
        """All units below ``position`` have been handed out. Under the lock."""
        return

    def chunk_done(self, slot: int, node: int, start: int, end: int, busy_ns: int) -> None:
        """The chunk function has returned after ``busy_ns`` nanoseconds. Called by that thread, without a lock."""
        return

    def chunk_failed(self, slot: int, node: int, start: int, end: int) -> None:
        """The chunk function has raised; how much of the chunk is done is not known. Under the lock.

        It may follow the ``chunk_done`` of the same chunk, if the first thread was interrupted just then: the
        chunk does not count as done.
        """
        return

    def thread_waits(self, slot: int, why: str) -> None:
        """The thread waits, ``paused`` or ``throttled``, until its next ``chunk_assigned``. Under the lock."""
        return

    def thread_ended(self, slot: int) -> None:
        """The thread takes no further part. Under the lock.

        It may come twice for the first thread, if that was interrupted just then.
        """
        return

    def threads_found(self, nid: int, threads: int, why: str) -> None:
        """The number of threads for NUMA node ``nid``, or NO_NODE: as many as help (``enough``), the maximum
        (``most``), or ``trying``: the search tries more or fewer. Under the lock.
        """
        return

    def undo_started(self) -> None:
        """All threads have ended and the finished ranges are about to be undone: from now on nothing counts as done."""
        return


class Silence(Monitor):
    """The monitor of a task that has none: does nothing."""
