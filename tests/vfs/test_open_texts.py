"""The shared state of all openings of a text file: the reported size, and the total memory."""

from __future__ import annotations

import errno
import os

import pytest

from ktaskfs.quota import Quota
from ktaskfs.vfs import Attributes, Caller, OpenTexts, TextFile, TooMuchText
from ktaskfs.vfs.open_texts import OPENING_SIZE
from tests.vfs.counter import ALICE, BIG, Counter, opened


async def test_an_opening_reads_what_its_opener_was_told_the_size_of() -> None:
    counter = Counter()
    texts = OpenTexts()
    file = TextFile(2, Attributes(0o644), counter.render, texts=texts)
    bob = Caller(1001, 1001, 43)
    told = await file.look(ALICE, anew=True)
    assert told.size == len("render 1 for 1000\n")
    other = await file.open(bob, os.O_RDONLY)
    own = await file.open(ALICE, os.O_RDONLY)
    assert (await file.look(ALICE, anew=False), counter.renders) == (told, 2), "fstat(2) after open(2)"
    assert (await other.read(0, BIG), await own.read(0, BIG)) == (b"render 2 for 1001\n", b"render 1 for 1000\n")
    assert (await file.look(ALICE, anew=False), counter.renders) == (told, 2), "fstat(2) after read(2), as of tar"
    assert await own.read(0, BIG) == b"render 3 for 1000\n"
    read_again = await file.look(ALICE, anew=False)
    assert read_again.changed_ns > told.changed_ns
    assert (await file.look(ALICE, anew=False), counter.renders) == (read_again, 3)
    own.release()
    assert (await file.look(ALICE, anew=False)).changed_ns > read_again.changed_ns
    again = await file.open(ALICE, os.O_RDONLY)
    await file.open(ALICE, os.O_RDONLY)
    assert (await again.read(0, BIG), counter.renders) == (b"render 4 for 1000\n", 5), "a look serves one opening"


async def test_a_text_that_is_the_same_has_not_changed() -> None:
    texts = ["one\n", "one\n", "two\n", "one\n"]
    file = TextFile(2, Attributes(0o444), lambda caller: texts.pop(0))
    first, same, other, back = [await file.look(ALICE, anew=True) for _ in range(4)]
    assert first == same
    assert first.changed_ns < other.changed_ns < back.changed_ns


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "told"),
    [(0o400, 1000, 0, True), (0o040, 1000, 0, False), (0o040, 0, 1000, True), (0o404, 0, 1000, False), (4, 0, 0, True)],
)
async def test_only_who_may_read_is_told_the_size(mode: int, uid: int, gid: int, told: bool) -> None:
    counter = Counter()
    file = TextFile(2, Attributes(mode, uid, gid), counter.render)
    assert (await file.look(ALICE, anew=True)).size == (18 if told else 4096)
    assert counter.renders == told
    assert (await file.look(Caller(0, 0, 1), anew=True)).size == len(f"render {1 + told} for 0\n")


async def test_looks_that_nobody_opens_are_dropped() -> None:
    texts = OpenTexts()
    large = [TextFile(number, Attributes(0o444), lambda caller: "x" * (1 << 20), texts=texts) for number in range(6)]
    for each in large:
        await each.look(ALICE, anew=True)
    assert [texts.take_look(number, ALICE) is not None for number in range(6)] == [False, False, True, True, True, True]
    for number in range(300):
        await TextFile(number, Attributes(0o444), lambda caller: "x", texts=texts).look(ALICE, anew=True)
    assert [number for number in range(300) if texts.take_look(number, ALICE)] == list(range(44, 300))


def budget(most: int) -> tuple[OpenTexts, Quota]:
    quota = Quota("bytes", each=most, total=64 * most, refusal=TooMuchText)
    return OpenTexts(quota), quota


async def test_openings_that_share_their_text_hold_it_once() -> None:
    texts, quota = budget(64 << 10)
    shared = b"x" * (32 << 10)
    file = TextFile(2, Attributes(0o444), lambda caller: shared, texts=texts)
    first = [await opened(file, os.O_RDONLY) for _ in range(20)]
    assert quota.held(ALICE.uid) == len(shared) + 20 * OPENING_SIZE
    assert await first[0].read(0, BIG) is not await first[1].read(0, 10)
    for each in first:
        each.release()
    assert quota.held(ALICE.uid) == 0


async def test_a_user_whose_open_files_hold_too_much_gets_enomem() -> None:
    texts, quota = budget(64 << 10)
    size = 30 << 10
    file = TextFile(2, Attributes(0o444), lambda caller: b"x" * size, texts=texts)
    first, _ = [await opened(file, os.O_RDONLY) for _ in range(2)]
    with pytest.raises(TooMuchText) as refusal:
        await opened(file, os.O_RDONLY)
    assert refusal.value.errno == errno.ENOMEM
    (await file.open(Caller(1001, 1001, 1), os.O_RDONLY)).release()
    await first.read(0, 1)
    with pytest.raises(TooMuchText):  # a new text, while the old one is still held
        await first.read(0, 1)
    assert await first.read(size - 1, 10) == b"x"
    before = quota.held(ALICE.uid)
    first.release()
    assert quota.held(ALICE.uid) == before - size - OPENING_SIZE
