"""Text files: snapshots, commands, replies and poll(2), beside a model of them."""

from __future__ import annotations

import errno
import os

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ktaskfs.errors import KtaskfsError
from ktaskfs.quota import Quota
from ktaskfs.vfs import COMMAND_MAX, Attributes, Caller, Change, OpenTexts, TextFile, TooMuchText
from ktaskfs.vfs.change import CHANGED
from ktaskfs.vfs.text import OPENING_SIZE, REPLY_MAX, OpenText

ALICE = Caller(1000, 1000, 42)
BIG = 1 << 20


class Counter:
    """Shows how often it was shown, takes commands, and remembers what it was told."""

    def __init__(self) -> None:
        self.renders = 0
        self.commands: list[tuple[Caller, str]] = []
        self.refused: list[tuple[str, int]] = []
        self.change = Change()

    def render(self, caller: Caller) -> str:
        self.renders += 1
        return f"render {self.renders} for {caller.uid}\n"

    async def write(self, caller: Caller, text: str) -> str | None:
        self.commands.append((caller, text))
        return f"did {text}\n" if text.startswith("reply") else None

    def note_refused(self, caller: Caller, text: str, error: KtaskfsError) -> None:
        self.refused.append((text, error.errno))

    def file(self) -> TextFile:
        return TextFile(
            2, Attributes(0o644), self.render, self.write, change=self.change, refused=self.note_refused
        )


async def opened(file: TextFile, flags: int = os.O_RDWR) -> OpenText:
    return await file.open(ALICE, flags)


async def test_the_text_is_made_at_open_and_stays() -> None:
    counter = Counter()
    file = await opened(counter.file(), os.O_RDONLY)
    other = await opened(counter.file(), os.O_RDONLY)
    assert await other.read(0, BIG) == b"render 2 for 1000\n"
    assert await file.read(0, 8) + await file.read(8, BIG) == b"render 1 for 1000\n"
    assert await file.read(18, BIG) == b""


async def test_a_second_read_at_the_start_makes_the_text_anew() -> None:
    counter = Counter()
    file = await opened(counter.file(), os.O_RDONLY)
    assert await file.read(7, 1) == b"1"
    assert await file.read(0, 8) == b"render 1"
    assert await file.read(0, 8) == b"render 2"
    assert await file.read(7, 1) == b"2"


async def test_a_file_opened_for_writing_only_is_not_rendered() -> None:
    counter = Counter()
    await opened(counter.file(), os.O_WRONLY)
    assert counter.renders == 0


async def test_render_may_be_async_and_give_bytes() -> None:
    async def render(caller: Caller) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"\xff\n"

    file = await opened(TextFile(2, Attributes(0o444), render), os.O_RDONLY)
    assert await file.read(0, BIG) == b"\xff\n"


@given(text=st.text(max_size=200), sizes=st.lists(st.integers(1, 50), min_size=1))
def test_reads_of_any_sizes_give_the_whole_text(text: str, sizes: list[int]) -> None:
    async def read_all() -> bytes:
        file = await opened(TextFile(2, Attributes(0o444), lambda caller: text), os.O_RDONLY)
        data = b""
        for turn in range(1000):
            part = await file.read(len(data), sizes[turn % len(sizes)])
            data += part
            if not part:
                break
        return data

    assert trio.run(read_all) == text.encode()


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR])
async def test_root_cannot_open_for_writing_what_takes_no_commands(flags: int) -> None:
    with pytest.raises(KtaskfsError) as refused:
        await opened(TextFile(2, Attributes(0o444), lambda caller: ""), flags)
    assert refused.value.errno == errno.EACCES


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
async def test_a_file_without_text_cannot_be_opened_for_reading(flags: int) -> None:
    with pytest.raises(KtaskfsError) as refused:
        await opened(TextFile(2, Attributes(0o200), None, Counter().write), flags)
    assert refused.value.errno == errno.EACCES


async def test_a_write_is_one_command_of_its_opener_with_its_white_space_stripped() -> None:
    counter = Counter()
    file = await opened(counter.file(), os.O_WRONLY)
    assert await file.write(0, b" \t12 \xc3\xa9\n\n") == 9
    assert counter.commands == [(ALICE, "12 é")]
    assert counter.refused == []


@pytest.mark.parametrize(
    ("offset", "data", "number"),
    [
        (0, b"x" * (COMMAND_MAX + 1), errno.E2BIG),
        (1, b"x", errno.EINVAL),
        (0, b" \n", errno.EINVAL),
        (0, b"a\0b", errno.EINVAL),
        (0, b"a\xff", errno.EINVAL),
    ],
    ids=["too long", "not at the start", "empty", "NUL", "not UTF-8"],
)
async def test_what_is_no_command_is_refused_and_reported(offset: int, data: bytes, number: int) -> None:
    counter = Counter()
    file = await opened(counter.file(), os.O_WRONLY)
    with pytest.raises(KtaskfsError) as refused:
        await file.write(offset, data)
    assert refused.value.errno == number
    assert counter.commands == []
    assert counter.refused == [(data[:COMMAND_MAX].decode(errors="replace"), number)]


async def test_the_longest_command_is_taken() -> None:
    counter = Counter()
    file = await opened(counter.file(), os.O_WRONLY)
    assert await file.write(0, b"x" * COMMAND_MAX) == COMMAND_MAX
    assert counter.commands == [(ALICE, "x" * COMMAND_MAX)]


async def test_an_appended_write_may_be_at_any_offset() -> None:
    counter = Counter()
    file = await opened(counter.file(), os.O_WRONLY | os.O_APPEND)
    await file.write(2, b"x\n")
    assert counter.commands == [(ALICE, "x")]


async def test_what_the_owner_raises_goes_to_the_writer_and_is_his_own_to_report() -> None:
    counter = Counter()

    async def refuse(caller: Caller, text: str) -> None:
        raise KtaskfsError("no", errno=errno.EBUSY)

    file = await opened(TextFile(2, Attributes(0o644), None, refuse, refused=counter.note_refused), os.O_WRONLY)
    with pytest.raises(KtaskfsError, match="no"):
        await file.write(0, b"x")
    assert counter.refused == []


async def test_replies_are_read_where_the_writes_left_the_file_position() -> None:
    counter = Counter()
    file = await opened(counter.file())
    end = await file.write(0, b"reply a\n")
    assert await file.read(end, 4) == b"did "
    assert await file.read(end + 4, BIG) == b"reply a\n"
    assert await file.read(end + 12, BIG) == b""
    end = await file.write(0, b"reply bb\n")
    assert await file.read(end, BIG) == b"did reply a\ndid reply bb\n"


async def test_a_reply_longer_than_its_command_is_read_whole_from_the_start() -> None:
    file = await opened(Counter().file())
    await file.write(0, b"reply")
    assert b"".join([await file.read(offset, 1) for offset in range(20)]) == b"did reply\n"


async def test_without_a_reply_the_text_is_read_on() -> None:
    file = await opened(Counter().file())
    await file.write(0, b"x")
    assert await file.read(0, 8) == b"render 1"


async def test_replies_are_bounded_and_the_latest_stay() -> None:
    async def write(caller: Caller, text: str) -> str:
        return text * 100

    file = await opened(TextFile(2, Attributes(0o644), lambda caller: "", write))
    for letter in "abc":
        await file.write(0, letter.encode() * 400)
    reply = await file.read(0, BIG)
    assert len(reply) == REPLY_MAX
    assert reply.endswith(b"c" * 40_000)


async def test_poll_on_a_file_that_does_not_report_changes_never_says_changed() -> None:
    file = await opened(TextFile(2, Attributes(0o444), lambda caller: ""), os.O_RDONLY)
    assert not file.poll(lambda: None) & CHANGED


async def test_release_drops_the_waiting_poll() -> None:
    counter = Counter()
    file = await opened(counter.file())
    file.poll(lambda: None)
    assert counter.change.waiting == 1
    file.release()
    assert counter.change.waiting == 0


async def test_a_change_while_the_text_is_made_is_reported() -> None:
    change = Change()

    async def render(caller: Caller) -> str:
        change.notify()
        await trio.lowlevel.checkpoint()
        return "x"

    file = await TextFile(2, Attributes(0o444), render, change=change).open(ALICE, os.O_RDONLY)
    await file.read(0, BIG)
    assert file.poll(None) & CHANGED


class PollingReader(RuleBasedStateMachine):
    """kernfs' rule: changed since the last read from the start, or never read; one wake for each poll."""

    def __init__(self) -> None:
        super().__init__()
        self.change = Change()
        self.version = 0
        self.drawn = 0
        self.seen: int | None = None
        self.fresh = True
        self.awaiting = False
        self.woken = False
        node = TextFile(2, Attributes(0o444), lambda caller: f"{self.version:05}\n", change=self.change)
        self.file = trio.run(opened, node, os.O_RDONLY)

    @rule()
    def something_changes(self) -> None:
        expected = self.awaiting
        self.version += 1
        self.woken = False
        self.change.notify()
        assert self.woken == expected
        self.awaiting = False

    @rule()
    def read_from_the_start(self) -> None:
        if not self.fresh:
            self.drawn = self.version
        self.fresh = False
        self.seen = self.drawn
        assert trio.run(self.file.read, 0, BIG) == f"{self.drawn:05}\n".encode()

    @rule(offset=st.integers(1, 7))
    def read_further_on(self, offset: int) -> None:
        assert trio.run(self.file.read, offset, BIG) == f"{self.drawn:05}\n".encode()[offset:]

    def wake(self) -> None:
        assert not self.woken
        self.woken = True

    @precondition(lambda self: not self.awaiting)
    @rule()
    def wait_by_poll(self) -> None:
        self.file.poll(self.wake)
        self.awaiting = True

    @invariant()
    def says_changed_when_it_is(self) -> None:
        assert bool(self.file.poll(None) & CHANGED) == (self.seen != self.version)


TestPollingReader = PollingReader.TestCase


async def test_a_further_command_may_follow_a_line_on_the_same_descriptor() -> None:
    commands: list[str] = []

    async def take(caller: Caller, text: str) -> None:
        commands.append(text)

    file = await TextFile(2, Attributes(0o644), lambda caller: "", take).open(ALICE, os.O_WRONLY)
    assert await file.write(0, b"one\n") == 4
    assert await file.write(4, b"two") == 3
    with pytest.raises(KtaskfsError) as refusal:
        await file.write(7, b"three")
    assert refusal.value.errno == errno.EINVAL
    assert await file.write(0, b"four\n") == 5
    with pytest.raises(KtaskfsError):
        await file.write(4, b"five")
    assert commands == ["one", "two", "four"]


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
    with pytest.raises(TooMuchText):  # the text anew, while the old one is still held
        await first.read(0, 1)
    assert await first.read(size - 1, 10) == b"x"
    before = quota.held(ALICE.uid)
    first.release()
    assert quota.held(ALICE.uid) == before - size - OPENING_SIZE
