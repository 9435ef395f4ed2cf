"""Streams: chunks in order, for reads of any size; the end; patience; splices."""

from __future__ import annotations

import errno
import os
import select

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from ktaskfs.errors import KtaskfsError, TooManyOpen
from ktaskfs.quota import Quota
from ktaskfs.vfs import Attributes, Caller, Change, Stream, StreamFile
from ktaskfs.vfs.splices import LATELY, PAGE, SHOWN_SIZE, SPLICE_SIZE, Splices
from ktaskfs.vfs.stream import PATIENCE, OpenStream

ALICE = Caller(1000, 1000, 42)


class Chunks(Stream):
    """Yields the items that are sent to it."""

    def __init__(self, *chunks: bytes) -> None:
        self._send, self._receive = trio.open_memory_channel[bytes](1000)
        for chunk in chunks:
            self.send(chunk)
        self.closed = 0
        self.asked_after_the_end = False
        self._ended = False

    def send(self, chunk: bytes) -> None:
        self._send.send_nowait(chunk)

    async def next_chunk(self) -> bytes:
        self.asked_after_the_end |= self._ended
        chunk = await self._receive.receive()
        self._ended = not chunk
        return chunk

    def ready(self) -> bool:
        return self._receive.statistics().current_buffer_used > 0

    def close(self) -> None:
        self.closed += 1


async def opened(stream: Stream, flags: int = os.O_RDONLY, change: Change | None = None) -> OpenStream:
    return await StreamFile(2, Attributes(0o444), lambda caller: stream, change=change).open(ALICE, flags)


@given(chunks=st.lists(st.binary(min_size=1, max_size=30)), sizes=st.lists(st.integers(1, 40), min_size=1))
def test_reads_of_any_sizes_give_every_chunk_and_then_the_end(chunks: list[bytes], sizes: list[int]) -> None:
    async def read_all() -> bytes:
        stream = Chunks(*chunks, b"")
        file = await opened(stream)
        data = b""
        for turn in range(10_000):
            part = await file.read(len(data), sizes[turn % len(sizes)])
            data += part
            if not part:
                break
        assert await file.read(len(data), 1) == b""
        assert not stream.asked_after_the_end
        return data

    assert trio.run(read_all) == b"".join(chunks)


async def test_a_read_gives_one_chunk_as_soon_as_it_is_there(autojump_clock: MockClock) -> None:
    stream = Chunks()
    file = await opened(stream)
    got: list[bytes] = []

    async def read() -> None:
        got.append(await file.read(0, 100))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        assert got == []
        stream.send(b"one\n")
        stream.send(b"two\n")
    assert got == [b"one\n"]
    assert trio.current_time() < PATIENCE


async def test_a_stream_that_gives_nothing_interrupts_its_reader_and_loses_nothing(
    autojump_clock: MockClock,
) -> None:
    stream = Chunks()
    file = await opened(stream)
    start = trio.current_time()
    with pytest.raises(KtaskfsError) as interrupted:
        await file.read(0, 100)
    assert interrupted.value.errno == errno.EINTR
    assert trio.current_time() - start == pytest.approx(PATIENCE)
    stream.send(b"late\n")
    assert await file.read(0, 100) == b"late\n"


async def test_a_second_reader_of_one_descriptor_waits_no_longer_either(autojump_clock: MockClock) -> None:
    file = await opened(Chunks())
    ended: list[float] = []

    async def read() -> None:
        with pytest.raises(KtaskfsError):
            await file.read(0, 100)
        ended.append(trio.current_time())

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(read)
    assert [end - start for end in ended] == pytest.approx([PATIENCE, PATIENCE])


async def test_without_blocking_a_read_is_refused_until_there_is_something() -> None:
    stream = Chunks()
    file = await opened(stream, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(KtaskfsError) as refused:
        await file.read(0, 100)
    assert refused.value.errno == errno.EAGAIN
    stream.send(b"x")
    assert await file.read(0, 100) == b"x"


async def test_what_the_kernel_reads_for_a_splice_is_refused_and_loses_nothing() -> None:
    file = await opened(Chunks(b"one\n", b""))
    for size in (SPLICE_SIZE, PAGE):  # ahead, and after the error the first page again
        with pytest.raises(KtaskfsError) as refused:
            await file.read(0, size)
        assert refused.value.errno == errno.EINVAL
    assert [await file.read(0, 2 * PAGE), await file.read(4, PAGE)] == [b"one\n", b""]


@pytest.mark.parametrize(
    "again",
    [
        [(0, PAGE), (0, PAGE)],
        [(0, 2 * PAGE), (0, PAGE)],
        [(0, SPLICE_SIZE), (0, PAGE)],
        [(0, PAGE), (2 * PAGE, PAGE), (0, 2 * PAGE), (0, PAGE)],
    ],
)
async def test_it_is_refused_too_if_another_open_drops_some_of_its_pages(again: list[tuple[int, int]]) -> None:
    """The kernel reads what is missing ahead, and after the error the first page again."""
    file = await opened(Chunks(b"one\n", b""))
    for offset, size in ((0, SPLICE_SIZE), *again):
        with pytest.raises(KtaskfsError, match="spliced"):
            await file.read(offset, size)
    assert await file.read(0, 2 * PAGE) == b"one\n"


async def test_a_read_beyond_the_delivered_bytes_is_refused() -> None:
    """A program reads a stream from where it is; only the kernel reads ahead of that."""
    file = await opened(Chunks(b"one\n", b"two\n", b""))
    assert await file.read(0, 2 * PAGE) == b"one\n"
    with pytest.raises(KtaskfsError, match="spliced"):
        await file.read(2 * PAGE, PAGE)
    assert [await file.read(4, 2 * PAGE), await file.read(8, 2 * PAGE)] == [b"two\n", b""]


async def test_a_page_that_is_left_from_the_splice_of_another_is_refused() -> None:
    now = 0.0
    splices = Splices(lambda: now)
    streams = iter([Chunks(), *(Chunks(b"one\n") for _ in range(3))])
    file = StreamFile(2, Attributes(0o444), lambda caller: next(streams), splices=splices)
    other = StreamFile(3, Attributes(0o444), lambda caller: next(streams), splices=splices)
    splicer, before = [await file.open(ALICE, os.O_RDONLY) for _ in range(2)]
    with pytest.raises(KtaskfsError):
        await splicer.read(0, SPLICE_SIZE)
    with pytest.raises(KtaskfsError):
        await before.read(0, PAGE)
    assert await before.read(0, 2 * PAGE) == b"one\n"
    assert await (await other.open(ALICE, os.O_RDONLY)).read(0, PAGE) == b"one\n"
    now += 2 * LATELY
    assert await (await file.open(ALICE, os.O_RDONLY)).read(0, PAGE) == b"one\n"


async def test_a_program_that_reads_a_page_at_a_time_reads_on() -> None:
    lines = [b"x" * 79 + b"\n"] * 300
    file = await opened(Chunks(*lines, b""))
    assert [await file.read(80 * number, PAGE) for number in range(301)] == [*lines, b""]


async def test_a_program_that_takes_the_size_for_true_learns_that_it_is_not() -> None:
    lines = [b"x" * 79 + b"\n"] * 300
    file = await opened(Chunks(*lines, b""))
    taken = 0
    while taken <= SHOWN_SIZE // 2:
        taken += len(await file.read(taken, SHOWN_SIZE - taken))
    with pytest.raises(KtaskfsError):
        await file.read(taken, SHOWN_SIZE - taken)
    short = await opened(Chunks(b"one\n", b""))
    assert [await short.read(0, SHOWN_SIZE), await short.read(4, SHOWN_SIZE - 4)] == [b"one\n", b""]


async def test_poll_says_whether_a_read_would_wait() -> None:
    stream = Chunks()
    change = Change()
    file = await opened(stream, change=change)
    woken: list[int] = []
    assert file.poll(lambda: woken.append(1)) == 0
    stream.send(b"one\n")
    change.notify()
    assert woken == [1]
    assert file.poll(None) & select.POLLIN
    await file.read(0, 2)
    assert file.poll(None) & select.POLLIN
    await file.read(2, 2)
    assert file.poll(None) == 0
    stream.send(b"")
    await file.read(4, 2)
    assert file.poll(None) & select.POLLIN


async def test_release_closes_the_stream_and_drops_the_waiting_poll() -> None:
    stream = Chunks()
    change = Change()
    file = await opened(stream, change=change)
    file.poll(lambda: None)
    file.release()
    assert (stream.closed, change.waiting) == (1, 0)


async def test_a_stream_cannot_be_opened_for_writing() -> None:
    stream = Chunks()
    with pytest.raises(KtaskfsError) as refused:
        await opened(stream, os.O_RDWR)
    assert refused.value.errno == errno.EACCES


async def test_a_user_has_so_many_streams_and_no_more() -> None:
    quota = Quota("streams", each=2, total=100, refusal=TooManyOpen)
    streams = [Chunks() for _ in range(4)]
    left = iter(streams)
    file = StreamFile(2, Attributes(0o444), lambda caller: next(left), quota=quota)
    first, _ = [await file.open(ALICE, os.O_RDONLY) for _ in range(2)]
    with pytest.raises(TooManyOpen):
        await file.open(ALICE, os.O_RDONLY)
    assert [stream.closed for stream in streams] == [0, 0, 1, 0]
    first.release()
    assert quota.held(ALICE.uid) == 1
    await file.open(ALICE, os.O_RDONLY)
