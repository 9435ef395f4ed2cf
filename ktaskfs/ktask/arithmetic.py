"""How many threads a task gets and how large its chunks are: the framework's arithmetic, as pure functions.

The rules are those of ``ktask_init_works`` and ``ktask_chunk_size`` (kernel/ktask.c, RFC v1 to v4). They know no
alignment; the idea of one is ``padata_do_multithreaded``'s (kernel/padata.c), which rounds otherwise: its chunks up,
its number of threads down. All sizes are in the task's own units and have no upper limit. What is out of the bounds
that ``Control`` states is not refused here.
"""

from __future__ import annotations

from typing import Final

DEFAULT_MAX_THREADS: Final = 4
"""Threads of one task where the client names no number (KTASK_DEFAULT_MAX_THREADS)."""
DEFAULT_LOAD_BAL_SHIFT: Final = 2
"""Chunks for each thread, as a power of two (KTASK_LOAD_BAL_SHIFT)."""
DEFAULT_CPU_PERCENT: Final = 80
"""Share of the CPUs that helpers may take (KTASK_CPUFRAC_NUMER / KTASK_CPUFRAC_DENOM, since v2)."""

_TAIL_SHARE: Final = 2
"""A thread takes at most this fraction (1/2) of its even share of what is left, so that the last chunks are small."""


def batch_size(min_chunk_size: int, align: int = 1) -> int:
    """``min_chunk_size`` rounded up to ``align``: every chunk but a node's last is a multiple of this many units."""
    return -(-min_chunk_size // align) * align


def helper_limit(cpus: int, cpu_percent: int = DEFAULT_CPU_PERCENT) -> int:
    """Helper threads that ``cpus`` CPUs allow: ``cpu_percent`` of them, rounded down (``ktask_rlim_init``)."""
    return cpus * cpu_percent // 100


def nthreads(size: int, min_chunk_size: int, cpus: int, max_threads: int = 0, *, align: int = 1) -> int:
    """The threads wanted for a task of ``size`` units, the calling thread included; at least 1.

    No more than one for each least chunk, or for each CPU, or ``max_threads`` (0: DEFAULT_MAX_THREADS). How many of
    them a task gets is a matter of the budget for helpers.
    """
    chunks = -(-size // batch_size(min_chunk_size, align))
    return max(min(chunks, cpus, max_threads or DEFAULT_MAX_THREADS), 1)


def chunk_size(
    size: int,
    min_chunk_size: int,
    threads: int,
    *,
    max_chunk_size: int | None = None,
    align: int = 1,
    load_bal_shift: int = DEFAULT_LOAD_BAL_SHIFT,
) -> int:
    """The units of one chunk of a task of ``size`` units that ``threads`` threads share.

    One thread gets the whole task as one chunk, unless ``max_chunk_size`` (ours) forbids it. ``max_chunk_size`` must
    be at least ``batch_size(min_chunk_size, align)``.
    """
    chunk = size if threads == 1 else whole_batches((size // threads) >> load_bal_shift, min_chunk_size, align)
    if max_chunk_size is not None and chunk > max_chunk_size:
        chunk = whole_batches(max_chunk_size, min_chunk_size, align)
    return chunk


def tail_size(chunk: int, threads: int) -> int:
    """Fewer units than these are the tail, whose chunks are smaller than ``chunk``; 0 for one thread.

    Ours: it has nobody to wait for it.
    """
    return chunk * threads * _TAIL_SHARE if threads > 1 else 0


def tail_chunk_size(left: int, chunk: int, min_chunk_size: int, threads: int, *, align: int = 1) -> int:
    """``chunk``, or less when only ``left`` units are left to hand out to ``threads`` threads.

    Ours: half of an even share of what is left, down to the least chunk (guided self-scheduling, Polychronopoulos
    and Kuck 1987), so that the threads end together.
    """
    if left >= tail_size(chunk, threads):
        return chunk
    return min(chunk, whole_batches(left // (threads * _TAIL_SHARE), min_chunk_size, align))


def whole_batches(units: int, min_chunk_size: int, align: int) -> int:
    """``units`` rounded down to whole batches, at least one."""
    batch = batch_size(min_chunk_size, align)
    return max(units // batch, 1) * batch
