"""The number of threads and the chunk size of a task: the framework's arithmetic, as pure functions.

The rules are those of ``ktask_init_works`` and ``ktask_chunk_size`` (kernel/ktask.c, RFC v1 to v4), which have no
alignment. The idea of alignment is from ``padata_do_multithreaded`` (kernel/padata.c), which rounds differently: its
chunks up, its number of threads down. All sizes are in the task's own units and have no upper limit. These functions do
not check the bounds that ``Control`` states.
"""

from __future__ import annotations

from typing import Final

DEFAULT_MAX_THREADS: Final = 4
"""Default maximum of threads of one task (KTASK_DEFAULT_MAX_THREADS)."""
DEFAULT_LOAD_BAL_SHIFT: Final = 2
"""Chunks for each thread, as a power of two (KTASK_LOAD_BAL_SHIFT)."""
DEFAULT_CPU_PERCENT: Final = 80
"""Share of the CPUs that helpers may take (KTASK_CPUFRAC_NUMER / KTASK_CPUFRAC_DENOM, since v2)."""

_TAIL_SHARE: Final = 2
"""Divisor: a thread takes at most a half of its even share of the rest, so that the last chunks are small."""


def batch_size(min_chunk_size: int, align: int = 1) -> int:
    """``min_chunk_size`` rounded up to ``align``: every chunk is a multiple of it, except a node's last."""
    return -(-min_chunk_size // align) * align


def helper_limit(cpus: int, cpu_percent: int = DEFAULT_CPU_PERCENT) -> int:
    """Helper threads that ``cpus`` CPUs allow: ``cpu_percent`` of them, rounded down (``ktask_rlim_init``)."""
    return cpus * cpu_percent // 100


def nthreads(size: int, min_chunk_size: int, cpus: int, max_threads: int = 0, *, align: int = 1) -> int:
    """The threads wanted for a task of ``size`` units, the calling thread included; at least 1.

    At most one for each smallest chunk, one for each CPU, and ``max_threads`` (0: DEFAULT_MAX_THREADS). The
    HelperBudget decides how many of them the task gets.
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

    One thread gets the whole task as one chunk, unless ``max_chunk_size`` (ours) is smaller. ``max_chunk_size`` must be
    at least ``batch_size(min_chunk_size, align)``.
    """
    chunk = size if threads == 1 else whole_batches((size // threads) >> load_bal_shift, min_chunk_size, align)
    if max_chunk_size is not None and chunk > max_chunk_size:
        chunk = whole_batches(max_chunk_size, min_chunk_size, align)
    return chunk


def tail_size(chunk: int, threads: int) -> int:
    """The number of units left below which chunks are smaller than ``chunk``.

    Not in the kernel. 0 for one thread, because no other waits for it at the end.
    """
    return chunk * threads * _TAIL_SHARE if threads > 1 else 0


def tail_chunk_size(left: int, chunk: int, min_chunk_size: int, threads: int, *, align: int = 1) -> int:
    """``chunk``, or less when only ``left`` units remain for ``threads`` threads.

    Not in the kernel: half of an even share of the rest, but at least the smallest chunk (guided self-scheduling,
    Polychronopoulos and Kuck 1987), so that the threads end together.
    """
    if left >= tail_size(chunk, threads):
        return chunk
    return min(chunk, whole_batches(left // (threads * _TAIL_SHARE), min_chunk_size, align))


def whole_batches(units: int, min_chunk_size: int, align: int) -> int:
    """``units`` rounded down to whole batches, at least one."""
    batch = batch_size(min_chunk_size, align)
    return max(units // batch, 1) * batch
