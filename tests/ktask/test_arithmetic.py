"""The arithmetic against a plain model of the C sources, and the shrinking of the last chunks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ktaskfs.ktask import Control, Node, chunk_size, helper_limit, nthreads
from ktaskfs.ktask.arithmetic import batch_size, tail_chunk_size

SIZES = st.integers(0, 2**80)
CHUNKS = st.integers(1, 2**70)
THREADS = st.integers(1, 600)


def model_threads(size: int, min_chunk: int, cpus: int, max_threads: int) -> int:
    """ktask_init_works without its resource limits, step by step."""
    if max_threads == 0:
        max_threads = 4
    works = size // min_chunk
    if size % min_chunk:
        works += 1
    if cpus < works:
        works = cpus
    if max_threads < works:
        works = max_threads
    return works if works > 1 else 1


def model_chunk(size: int, min_chunk: int, works: int) -> int:
    """ktask_chunk_size, step by step."""
    if works == 1:
        return size
    chunk = size // works // 4
    if chunk > min_chunk:
        chunk -= chunk % min_chunk
    return chunk if chunk > min_chunk else min_chunk


def padata_threads(size: int, min_chunk: int, align: int, max_threads: int) -> int:
    """The value nworks of padata_do_multithreaded."""
    return min(max(size // max(min_chunk, align), 1), max_threads)


def padata_chunk(size: int, min_chunk: int, align: int, works: int) -> int:
    """The value chunk_size of padata_do_multithreaded, for more than one thread."""
    chunk = max(size // (works * 4), min_chunk, 1)
    return -(-chunk // align) * align


@given(SIZES, CHUNKS, st.integers(1, 2**20), st.integers(1, 600))
@example(100, 64, 1, 4)
def test_threads_beside_padatas(size: int, least: int, align: int, most: int) -> None:
    """One thread more for a partial chunk. If alignment enlarges the least chunk: fewer, but more than half."""
    ours, padatas = nthreads(size, least, 10**6, most, align=align), padata_threads(size, least, align, most)
    assert ours <= padatas + 1
    assert 2 * ours > padatas
    if batch_size(least, align) == max(least, align):
        assert ours >= padatas
        if size % max(least, align) == 0:
            assert ours == padatas


@given(SIZES, CHUNKS, st.integers(1, 2**20), st.integers(2, 600))
@example(1000, 1, 64, 2)
def test_chunks_beside_padatas(size: int, least: int, align: int, threads: int) -> None:
    """Never larger, and smaller by less than least chunk plus alignment. Up to one least chunk, both are equal."""
    ours, padatas = chunk_size(size, least, threads, align=align), padata_chunk(size, least, align, threads)
    batch = batch_size(least, align)
    assert ours <= padatas < ours + batch + align
    if size // threads // 4 <= batch:
        assert ours == padatas


@given(SIZES, CHUNKS, st.integers(1, 4096), st.integers(0, 600))
def test_threads_are_the_frameworks(size: int, min_chunk: int, cpus: int, max_threads: int) -> None:
    assert nthreads(size, min_chunk, cpus, max_threads) == model_threads(size, min_chunk, cpus, max_threads)


@given(SIZES, CHUNKS, THREADS)
def test_chunks_are_the_frameworks(size: int, min_chunk: int, threads: int) -> None:
    assert chunk_size(size, min_chunk, threads) == model_chunk(size, min_chunk, threads)


@given(SIZES, CHUNKS, st.integers(1, 2**20), THREADS, st.integers(1, 100))
def test_chunk_is_aligned_and_within_its_bounds(size: int, min_chunk: int, align: int, threads: int, most: int) -> None:
    batch = batch_size(min_chunk, align)
    assert batch >= min_chunk
    assert batch - min_chunk < align
    chunk = chunk_size(size, min_chunk, threads, max_chunk_size=batch * most, align=align)
    assert chunk <= batch * most
    if chunk != size:
        assert chunk >= batch
        assert chunk % batch == 0
        assert chunk % align == 0


@given(SIZES, CHUNKS, st.integers(1, 2**20), THREADS, st.integers(1, 100))
def test_last_chunks_only_shrink_and_stay_whole(left: int, least: int, align: int, threads: int, times: int) -> None:
    batch = batch_size(least, align)
    chunk = batch * times
    tail = tail_chunk_size(left, chunk, least, threads, align=align)
    assert batch <= tail <= chunk
    assert tail % batch == 0
    if threads > 1 and tail > batch:
        assert tail * threads * 2 <= left or tail == chunk
    if threads == 1 or left >= chunk * threads * 2:
        assert tail == chunk


@given(st.integers(1, 2**80), st.integers(1, 2**20), st.integers(2, 64))
def test_number_of_tail_chunks_is_logarithmic(size: int, least: int, threads: int) -> None:
    chunk = chunk_size(size, least, threads)
    left, chunks = size, 0
    while left > 0:
        left -= tail_chunk_size(left, chunk, least, threads)
        chunks += 1
    assert chunks <= 4 * threads + threads * (2 * size.bit_length() + 8)


@pytest.mark.parametrize(
    ("size", "min_chunk", "cpus", "max_threads", "threads", "chunk"),
    [
        (64 << 30, 128 << 20, 88, 0, 4, 4 << 30),  # fallocate of 64 GiB with the series' defaults
        (64 << 30, 128 << 20, 88, 16, 16, 1 << 30),
        (1 << 30, 128 << 20, 88, 16, 8, 128 << 20),
        (1000, 300, 8, 4, 4, 300),
        (10_000, 300, 8, 4, 4, 600),  # 625, rounded down to whole least chunks
        (1, 300, 8, 4, 1, 1),
        (0, 300, 8, 4, 1, 0),
        (100, 1, 1, 4, 1, 100),
        (100, 64, 8, 4, 2, 64),  # padata: one thread
    ],
)
def test_known_cases(size: int, min_chunk: int, cpus: int, max_threads: int, threads: int, chunk: int) -> None:
    assert nthreads(size, min_chunk, cpus, max_threads) == threads
    assert chunk_size(size, min_chunk, threads) == chunk


@pytest.mark.parametrize(("cpus", "percent", "helpers"), [(1, 80, 0), (2, 80, 1), (5, 80, 4), (88, 80, 70), (8, 0, 0)])
def test_helpers_are_a_share_of_the_cpus(cpus: int, percent: int, helpers: int) -> None:
    assert helper_limit(cpus, percent) == helpers


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_chunk_size": 0},
        {"min_chunk_size": 1, "align": 0},
        {"min_chunk_size": 1, "max_threads": -1},
        {"min_chunk_size": 1, "nice": 20},
        {"min_chunk_size": 1, "cpu_percent": 101},
        {"min_chunk_size": 1, "load_bal_shift": -1},
        {"min_chunk_size": 1, "rate": 0},
        {"min_chunk_size": 8, "max_chunk_size": 7},
        {"min_chunk_size": 5, "max_chunk_size": 7, "align": 4},
    ],
)
def test_contradictions_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is|below"):
        Control(lambda start, end: None, **wrong)


def test_a_negative_range_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 units"):
        Node(0, -1)
