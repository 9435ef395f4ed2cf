"""Patience with those who wait, shared out among users."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ktaskfs.errors import KtaskfsError
from ktaskfs.vfs import Attributes, Caller, Patience, Stream, StreamFile

SECONDS = 2.0


class Waits:
    """Waits of users, and those that were over before their time."""

    def __init__(self, nursery: trio.Nursery, patience: Patience) -> None:
        self._nursery = nursery
        self._patience = patience
        self._began = trio.current_time()
        self.early: list[str] = []

    async def begin(self, uid: int, name: str) -> None:
        self._nursery.start_soon(self._wait, uid, name)
        await wait_all_tasks_blocked()

    async def _wait(self, uid: int, name: str) -> None:
        with self._patience.wait(uid, SECONDS):
            await trio.sleep_forever()
        if trio.current_time() < self._began + SECONDS:
            self.early.append(name)


async def test_the_oldest_wait_of_a_user_with_too_many_ends(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    waits = Waits(nursery, Patience(of_one=2, in_all=100))
    for name in ("a", "b", "c", "d"):
        await waits.begin(7, name)
    await waits.begin(8, "other")
    assert waits.early == ["a", "b"]


async def test_the_user_who_has_most_makes_room(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    waits = Waits(nursery, Patience(of_one=100, in_all=4))
    for name in ("a", "b", "c"):
        await waits.begin(7, name)
    for uid in (8, 9):
        await waits.begin(uid, f"of {uid}")
    assert waits.early == ["a"]


async def test_no_wait_of_root_ends(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    waits = Waits(nursery, Patience(of_one=1, in_all=2))
    for name in ("a", "b", "c"):
        await waits.begin(0, name)
    await waits.begin(7, "mine")
    assert waits.early == ["mine"]


class Silent(Stream):
    """Never gives anything, and has ``idle`` for those who must not wait."""

    def __init__(self, idle: bytes) -> None:
        self._idle = idle

    async def next_chunk(self) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    def idle(self) -> bytes:
        return self._idle

    def close(self) -> None:
        pass


async def test_readers_of_one_descriptor_who_must_not_wait_get_something_harmless(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    patience = Patience(of_one=1, in_all=10)
    file = StreamFile(2, Attributes(0o444), lambda caller: Silent(b"\n"), patience=patience)
    opened = await file.open(Caller(7, 7, 1), 0)
    got: list[bytes] = []

    async def read() -> None:
        got.append(await opened.read(0, 10))  # the next item

    for _ in range(3):  # the first is in the stream, the others wait for it
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
    assert got == [b"\n", b"\n"]


async def test_a_reader_of_a_stream_without_anything_harmless_is_interrupted(autojump_clock: MockClock) -> None:
    quiet = await StreamFile(3, Attributes(0o444), lambda caller: Silent(b"")).open(Caller(7, 7, 1), 0)
    with pytest.raises(KtaskfsError, match="nothing to read yet"):
        await quiet.read(0, 10)
