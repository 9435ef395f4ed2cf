"""The table of the page's fields, and the layout that workers of an older daemon have written by."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ktaskfs.progress import (
    NodeProgress,
    Phase,
    Requests,
    Shape,
    ThreadProgress,
    ThreadState,
    WorkerPage,
    read_requests,
    read_snapshot,
    write_requests,
)
from ktaskfs.progress.layout import BANK, IDENTITY, MESSAGE_AT, MESSAGE_BYTES, RANGE, REPORT, REQUESTS, SLOT, WORD
from ktaskfs.span import Node
from tests.support.pages import SHAPE, new_page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ktaskfs.progress.layout import FieldBlock

BLOCKS = {
    "identity": IDENTITY,
    "requests": REQUESTS,
    "report": REPORT,
    "range": RANGE,
    "slot": SLOT,
    "bank": BANK,
}
RANGE_AT, SLOT_AT = 512, 512 + 4 * 8
"""In a page of SHAPE, which has room for four ranges."""


@pytest.fixture
def page() -> Iterator[int]:
    fd = new_page()
    yield fd
    os.close(fd)


def words(fd: int) -> list[int]:
    return memoryview(os.pread(fd, SHAPE.size, 0)).cast("Q").tolist()


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS.keys())
def test_the_fields_of_a_block_follow_one_another_and_fit(block: FieldBlock) -> None:
    assert [field.word for field in block.fields] == list(range(len(block.fields)))
    assert len({field.name for field in block.fields}) == len(block.fields) <= block.words


def test_no_two_blocks_overlap() -> None:
    assert IDENTITY.at == 0
    assert IDENTITY.at + IDENTITY.words <= REQUESTS.at
    assert REQUESTS.at + REQUESTS.words <= REPORT.at
    assert REPORT.at + REPORT.words <= MESSAGE_AT
    assert RANGE.at >= MESSAGE_AT + MESSAGE_BYTES // WORD
    assert len(SLOT.fields) <= BANK.at
    assert BANK.at + 2 * BANK.words <= SLOT.words
    assert Shape(3, 4).slots_at == SLOT_AT
    assert Shape(3, 4).size == 8 * (SLOT_AT + 3 * 16)


def test_a_page_as_an_older_worker_wrote_it_is_read(page: int) -> None:
    report = [1, 11, 12, 40, 1, 5, 2**64 - 7, 3, 1]
    stored = {
        32: report,
        64: [int.from_bytes(b"why\0", "little")],
        RANGE_AT: [100, 40, 2**64 - 1, 30],
        SLOT_AT + 16: [7, 3, 71, 2**64 - 1, 4, 5, 6],
        SLOT_AT + 16 + 12: [0, 20, 30],  # the second bank, as the sequence number is odd
    }
    for at, values in stored.items():
        os.pwrite(page, b"".join(value.to_bytes(8, "little") for value in values), at * 8)
    snapshot = read_snapshot(page, SHAPE)
    assert (snapshot.phase, snapshot.started_ns, snapshot.ended_ns, snapshot.total) == (Phase.RUNNING, 11, 12, 40)
    assert (snapshot.errno, snapshot.error_position, snapshot.message) == (5, -7, "why")
    assert (snapshot.result_size, snapshot.undone) == (3, True)
    assert snapshot.nodes == (NodeProgress(100, 40, -1, 30),)
    assert snapshot.threads == (ThreadProgress(1, 71, -1, ThreadState.THROTTLED, 4, 5, 6, 0, 20, 30),)


def test_requests_are_where_an_older_worker_looks_for_them(page: int) -> None:
    requests = Requests(cancel=True, paused=False, threads=3, rate=2**40, nice=-5)
    write_requests(page, requests)
    assert words(page)[8:13] == [1, 0, 3, 2**40, 2**64 - 5]
    assert read_requests(page) == requests
    assert words(page)[:3] == [int.from_bytes(b"ktaskpg1", "little"), 3, 4]


def test_a_worker_writes_where_an_older_daemon_looks(page: int) -> None:
    worker = WorkerPage(page)
    worker.begin([Node(100, 40, -1)], 40)
    worker.thread_started(1, 71, -1)
    worker.chunk_assigned(1, 0, 0, 20)
    worker.node_advanced(0, 20)
    worker.chunk_done(1, 0, 0, 20, 9000)
    worker.chunk_assigned(1, 0, 20, 30)
    worker.undo_started()
    worker.end(Phase.FAILED, number=5, position=-7, message="why", result="abc")
    found = words(page)
    assert found[32] == 3
    assert 0 < found[33] <= found[34]
    assert found[35:41] == [40, 1, 5, 2**64 - 7, 3, 1]
    assert found[64] == int.from_bytes(b"why", "little")
    assert found[RANGE_AT : RANGE_AT + 4] == [100, 40, 2**64 - 1, 20]
    assert found[SLOT_AT + 16 : SLOT_AT + 23] == [3, 1, 71, 2**64 - 1, 1, 20, 9]
    assert found[SLOT_AT + 24 : SLOT_AT + 31] == [0, 20, 20, 0, 0, 20, 30]
    assert os.pread(page, 9, SHAPE.size) == b"abc"
