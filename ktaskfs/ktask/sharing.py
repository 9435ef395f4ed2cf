"""How the threads of a task share its work: the number of threads wanted, and the chunk size for the live ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktaskfs.ktask.arithmetic import chunk_size, nthreads, tail_chunk_size, tail_size

if TYPE_CHECKING:
    from ktaskfs.ktask.control import Control


class Sharing:
    """All that a thread reads to take its next chunk, in one object that changes only when a control or a thread does.

    Has no lock of its own: the scheduler's guards all of it.
    """

    __slots__ = ("_ctl", "_size", "chunk", "max_threads", "steady", "tail", "threads", "wanted")

    def __init__(self, ctl: Control, size: int) -> None:
        self._ctl = ctl
        self._size = size
        self.max_threads = ctl.max_threads
        """The most threads, the first included; 0: the framework's default."""
        self.wanted = 1
        """Threads that the task should have, if the budget allows them."""
        self.threads = 1
        """Threads that share the work; helpers beyond this number end."""
        self.chunk = size
        """Units of one chunk."""
        self.tail = 0
        """With fewer units left, chunks are smaller than ``chunk``."""
        self.steady = False
        """No pause, rate limit or thread change is pending: a thread may take its next chunk without ``_turn``."""

    def want(self, cpus: int) -> None:
        """Compute ``wanted`` for a machine of ``cpus`` CPUs."""
        ctl = self._ctl
        self.wanted = nthreads(self._size, ctl.min_chunk_size, cpus, self.max_threads, align=ctl.align)

    def share(self, live: int, most: int) -> None:
        """Compute the chunk size for ``live`` threads; ``most`` is the largest number that has run at one time."""
        ctl = self._ctl
        self.threads = min(live, self.wanted)
        # As in the kernel, a task that only ever had one thread is one chunk. A thread that the others have left gets
        # smaller chunks, so that controls can reach it.
        self.chunk = chunk_size(
            self._size,
            ctl.min_chunk_size,
            self.threads if most <= 1 else max(self.threads, 2),
            max_chunk_size=ctl.max_chunk_size,
            align=ctl.align,
            load_bal_shift=ctl.load_bal_shift,
        )
        self.tail = 0 if ctl.fixed_chunks else tail_size(self.chunk, self.threads)
        self.steady = False

    def tail_chunk(self, left: int) -> int:
        """Units of the next chunk when only ``left`` units are left to hand out."""
        ctl = self._ctl
        return tail_chunk_size(left, self.chunk, ctl.min_chunk_size, self.threads, align=ctl.align)
