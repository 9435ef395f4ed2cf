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
from ktaskfs.vfs import COMMAND_MAX, Attributes, Caller, Change, TextFile
from ktaskfs.vfs.change import CHANGED
from ktaskfs.vfs.inode import NEW_TEXT_SIZE
from ktaskfs.vfs.text import REPLY_MAX
from tests.vfs.counter import ALICE, BIG, Counter, opened


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
    ],
    ids=["too long", "not at the start", "empty", "NUL"],
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
    command = "x" * (COMMAND_MAX - 1) + "\n"
    assert await file.write(0, command.encode()) == COMMAND_MAX
    assert counter.commands == [(ALICE, command.strip())]


async def test_bytes_that_are_not_utf8_come_and_go_as_they_are() -> None:
    counter = Counter()
    file = await opened(counter.file())
    await file.write(0, b"reply caf\xe9\n")
    assert counter.commands == [(ALICE, "reply caf\udce9")]
    assert await file.read(0, BIG) == b"did reply caf\xe9\n"


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


async def test_a_process_that_does_not_read_gets_the_last_look_and_no_text() -> None:
    counter = Counter()
    file = counter.file()
    toucher = ALICE._replace(pid=ALICE.pid + 1)
    file.texts.not_readers.add(toucher.pid)
    first = await file.look(toucher, anew=True)
    assert first.size == NEW_TEXT_SIZE
    assert counter.renders == 0
    look = await file.look(ALICE, anew=True)
    assert await file.look(toucher, anew=False) == look
    file.texts.not_readers.remove(toucher.pid)
    assert await file.look(toucher, anew=True) != look
