"""Threads that work on small files in turn, or concurrently if a thread would wait."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING

import pytest

from ktaskfs.operations.trees._files import Piece
from ktaskfs.operations.trees._pieces import FEW, SMALL, ThreadTurns
from tests.support.poll import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = 3


def pieces(size: int) -> list[Piece]:
    return [Piece(number, 0, size, size) for number in range(FEW)]


def in_threads(work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_small_pieces_are_done_by_one_thread_at_a_time() -> None:
    turns, inside, most, done = ThreadTurns(), set[int](), 0, list[int]()

    def work(piece: Piece) -> None:
        nonlocal most
        inside.add(threading.get_ident())
        most = max(most, len(inside))
        if piece.file == FEW - 1:
            inside.remove(threading.get_ident())
        done.append(piece.file)

    def often() -> None:
        for _ in range(20):
            turns.do(pieces(SMALL), work)

    in_threads(often)
    assert (most, sorted(done)) == (1, sorted(list(range(FEW)) * THREADS * 20))


def test_many_pieces_are_done_by_a_few_at_a_time() -> None:
    """So no thread waits for all pieces of another thread."""
    turns, order, began = ThreadTurns(), list[int](), threading.Barrier(THREADS)

    def often() -> None:
        began.wait(DEADLINE)
        turns.do(
            (Piece(threading.get_ident(), 0, 1, 1) for _ in range(40 * FEW)), lambda piece: order.append(piece.file)
        )

    in_threads(often)
    assert len(order) == THREADS * 40 * FEW
    runs = [len(list(run)) for _, run in itertools.groupby(order)]
    assert all(run % FEW == 0 for run in runs)


def test_large_pieces_are_done_side_by_side() -> None:
    together = threading.Barrier(THREADS)

    def work(piece: Piece) -> None:
        if piece.file == 0:
            together.wait(DEADLINE)

    turns = ThreadTurns()
    in_threads(lambda: turns.do(pieces(SMALL + 1), work))
    assert not together.broken


def test_small_pieces_that_a_thread_waits_for_are_done_side_by_side() -> None:
    turns = ThreadTurns()
    turns.do(pieces(1), lambda piece: time.sleep(1e-4))  # as a disk would have it wait
    together = threading.Barrier(THREADS)

    def work(piece: Piece) -> None:
        if piece.file == 0:
            together.wait(DEADLINE)

    in_threads(lambda: turns.do(pieces(1), work))
    assert not together.broken


def test_the_turn_passes_on_after_an_error() -> None:
    def fail(piece: Piece) -> None:
        raise ValueError(piece.file)

    turns, done = ThreadTurns(), list[int]()
    with pytest.raises(ValueError, match="^0$"):
        turns.do(pieces(1), fail)
    in_threads(lambda: turns.do(pieces(1), lambda piece: done.append(piece.file)))
    assert len(done) == THREADS * FEW
