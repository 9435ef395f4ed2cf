"""Commands that arrive in pieces: put together, or refused whole."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.errors import KtaskfsError, TooBig
from ktaskfs.host.credentials import GROUPS_MAX
from ktaskfs.quota import Quota
from ktaskfs.user_threads import NoThread
from ktaskfs.vfs import COMMAND_MAX, Attributes, Caller, OpenTexts, TextFile, TooMuchText
from ktaskfs.vfs.open_json import OpenJson
from ktaskfs.vfs.open_texts import OPENING_SIZE
from ktaskfs.vfs.opener import FDS_MAX, Opener
from ktaskfs.vfs.opener import _read as read_proc
from ktaskfs.vfs.pieces import BLOCK, Pieces, is_piece
from ktaskfs.vfs.refusals import BadWrite, Incomplete
from tests.support.poll import DEADLINE

if TYPE_CHECKING:
    from ktaskfs.vfs.text import OpenText

UNSEEN = Caller(1000, 1000, 0)


@given(st.binary(max_size=5000), st.integers(1, 8), st.booleans())
def test_a_command_cut_at_any_buffer_size_is_taken_whole(text: bytes, blocks: int, append: bool) -> None:
    command = text.replace(b"\n", b" ") + b"x\n"
    pieces, size, taken, end = Pieces(append=append), blocks * BLOCK, [], 0
    for turn in range(2):
        for start in range(0, len(command), size):
            piece = command[start : start + size]
            whole = pieces.take(0 if append else end, piece)
            if whole is not None:
                taken.append(whole)
                pieces.done(end, piece)
            end += len(piece)
        assert taken == [command] * (turn + 1)
    assert not pieces.held


@given(st.lists(st.tuples(st.sampled_from([b"a\n", b"b", b"x" * BLOCK, b"y" * 3 * BLOCK, b"z" * COMMAND_MAX]),
                          st.sampled_from([-BLOCK, -1, 0, 1, BLOCK]), st.booleans(), st.booleans())),
       st.booleans())  # fmt: skip
def test_nothing_is_ever_taken_that_begins_in_the_middle(
    writes: list[tuple[bytes, int, bool, bool]], append: bool
) -> None:
    """For any input: the accepted writes are consecutive, and all except the last are pieces."""
    pieces, position, run = Pieces(append=append), 0, b""
    for data, distance, at_start, refuse in writes:
        offset = 0 if at_start else max(position + distance, 0)
        try:
            whole = pieces.take(offset, data)
        except KtaskfsError:
            run = b""
            assert not pieces.held
            continue
        run += data
        if whole is None:
            position = offset + len(data)
            assert pieces.held == run
            continue
        assert whole == run
        run = b""
        if refuse:
            pieces.refused(offset)
        else:
            pieces.done(offset, data)
            position = offset + len(data)


def test_the_rest_of_a_command_that_was_refused_is_refused_too() -> None:
    for append in (False, True):
        pieces, block = Pieces(append=append), b"x" * (COMMAND_MAX // 2)
        assert pieces.take(0, block) is None
        assert pieces.take(len(block), block) is None
        for _ in range(2):
            with pytest.raises((TooBig, BadWrite)):  # a refused write leaves the position unchanged
                pieces.take(2 * len(block), block)
        with pytest.raises(BadWrite, match="rest of a command"):
            pieces.take(2 * len(block), b"tail\n")
        assert pieces.take(2 * len(block), b"next\n") == b"next\n"


def test_a_command_that_is_too_long_is_not_read_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte takes the daemon's thread a tenth of a second."""
    monkeypatch.setattr(OpenJson, "goes_on", lambda self, data: pytest.fail(f"{len(data)} bytes are read"))
    with pytest.raises(TooBig):
        Pieces(append=False, json=True).take(0, b'{"' * COMMAND_MAX)


def test_another_command_in_the_middle_of_one_is_refused_and_so_is_that_one() -> None:
    pieces = Pieces(append=False)
    assert pieces.take(0, b"x" * BLOCK) is None
    with pytest.raises(BadWrite, match="512 bytes of an unfinished command"):
        pieces.take(0, b"cancel\n")
    assert not pieces.held
    assert pieces.take(0, b"cancel\n") == b"cancel\n"


@pytest.mark.parametrize(
    ("data", "piece"), [(b"x" * 512, True), (b"x" * 511 + b"\n", False), (b"x" * 513, False), (b"x" * 3 * 1024, True)]
)
def test_what_is_a_piece(data: bytes, piece: bool) -> None:
    assert is_piece(data) == piece


class Taker:
    """A text file that remembers the commands."""

    def __init__(self, texts: OpenTexts | None = None) -> None:
        self.commands: list[str] = []
        self.refused: list[tuple[str, int]] = []
        self.file = TextFile(2, Attributes(0o644), None, self.write, refused=self.note, texts=texts)

    async def write(self, caller: Caller, text: str) -> None:
        if text.startswith("bad"):
            raise KtaskfsError("no", errno=errno.EBUSY)
        self.commands.append(text)

    def note(self, caller: Caller, text: str, error: KtaskfsError) -> None:
        self.refused.append((text, error.errno))

    async def open(self, caller: Caller = UNSEEN) -> OpenText:
        return await self.file.open(caller, os.O_WRONLY)


async def test_a_writer_that_cannot_be_seen_is_believed_at_the_last_close() -> None:
    taker = Taker()
    file = await taker.open()
    await file.write(0, b"x" * 1024)
    await file.closed(last=False)
    assert (file.pending, taker.commands) == (True, [])
    await file.closed(last=True)
    assert (file.pending, taker.commands) == (False, ["x" * 1024])


async def test_of_a_killed_writer_nothing_is_carried_out_even_if_its_files_cannot_be_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At its own close, because the process is gone at the last one."""
    taker = Taker()
    monkeypatch.setattr(Opener, "has_it_open", lambda opener: True)
    file = await taker.open()
    await file.write(0, b"x" * 1024)
    monkeypatch.setattr(Opener, "was_killed", lambda opener: True)
    monkeypatch.setattr("ktaskfs.vfs.text.PATIENCE", 0)
    monkeypatch.setattr("ktaskfs.vfs.text.EXEC_PATIENCE", DEADLINE)
    async with taker.file.texts.open_threads.of(UNSEEN.uid):
        with pytest.raises(Incomplete):
            await file.closed(last=False)
    assert (file.pending, taker.commands) == (False, [])


async def test_a_writer_that_hangs_takes_no_thread_from_all_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as those that write the metrics."""
    go_on = threading.Event()

    def hang(opener: Opener) -> bool:
        go_on.wait()
        return False

    monkeypatch.setattr(Opener, "was_killed", hang)
    monkeypatch.setattr("ktaskfs.vfs.text.EXEC_PATIENCE", 0.01)
    taker = Taker()
    file = await taker.open()
    await file.write(0, b"x" * 1024)
    try:
        await file.closed(last=True)
        assert taker.commands == ["x" * 1024]
        assert taker.file.texts.death_threads.of(UNSEEN.uid).borrowed_tokens == 1
        assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    finally:
        go_on.set()


async def test_without_a_thread_a_held_command_is_kept_and_refused_at_the_last_close(no_threads: None) -> None:
    """Nobody knows whether its writer was killed."""
    taker = Taker()
    file = await taker.open()
    await file.write(0, b"x" * 1024)
    await file.closed(last=False)
    assert file.pending
    with pytest.raises(NoThread):
        await file.closed(last=True)
    assert (file.pending, taker.commands, taker.refused) == (False, [], [("x" * 1024, errno.EAGAIN)])


async def test_what_the_command_raises_is_the_error_of_the_close() -> None:
    file = await Taker().open()
    await file.write(0, b"bad" + b"x" * 1021)
    with pytest.raises(KtaskfsError, match="no"):
        await file.closed(last=True)
    await file.closed(last=True)


async def test_what_is_held_counts_and_is_bounded() -> None:
    quota = Quota("bytes", each=8 << 10, total=64 << 10, refusal=TooMuchText)
    taker = Taker(OpenTexts(quota))
    file = await taker.open()
    await file.write(0, b"x" * 1024)
    await file.write(1024, b"y" * 1024)
    assert quota.held(UNSEEN.uid) == 2048 + 2 * OPENING_SIZE
    with pytest.raises(TooMuchText):
        await file.write(2048, b"z" * 8192)
    assert quota.held(UNSEEN.uid) == OPENING_SIZE
    assert taker.refused == [("x" * 1024 + "y" * 1024 + "z" * 8192, errno.ENOMEM)]
    with pytest.raises(BadWrite):
        await file.write(2048, b"end\n")
    await file.write(0, b"x" * 1024)
    file.release()
    assert quota.held(UNSEEN.uid) == 0
    assert taker.commands == []


def test_an_opener_has_its_file_open_until_it_closes_it() -> None:
    read, write = os.pipe()
    inode = os.fstat(read).st_ino
    opener = Opener(os.getpid(), inode)
    assert opener.has_it_open() is True
    os.close(read)
    os.close(write)
    assert opener.has_it_open() is False
    assert Opener(0, inode).has_it_open() is None
    assert not opener.was_killed()


def test_a_process_with_very_many_files_is_not_looked_through() -> None:
    fds = [os.open("/", os.O_PATH) for _ in range(FDS_MAX)]
    try:
        assert Opener(os.getpid(), 1).has_it_open() is None
    finally:
        for fd in fds:
            os.close(fd)


def test_of_a_process_that_is_gone_nothing_is_known() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    opener = Opener(pid, 1)
    assert (opener.has_it_open(), opener.was_killed()) == (None, False)


def test_the_stat_of_a_process_that_is_not_ending_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """In execve(2) the process holds a lock that this read waits for, and waits for the answer to its close."""
    read: list[str] = []

    def noting(path: str) -> bytes:
        read.append(path)
        return Path(path).read_bytes()

    monkeypatch.setattr("ktaskfs.vfs.opener._read", noting)
    assert not Opener(os.getpid(), 1).was_killed()
    assert read == [f"/proc/{os.getpid()}/status"]


def test_the_memory_of_a_process_in_many_groups_is_seen(root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its status names the groups first."""
    read: list[str] = []

    def noting(path: str) -> bytes:
        read.append(path)
        return read_proc(path)

    monkeypatch.setattr("ktaskfs.vfs.opener._read", noting)
    groups = range(10**9, 10**9 + GROUPS_MAX)
    with subprocess.Popen(["sleep", "60"], extra_groups=groups) as process:
        assert not Opener(process.pid, 1).was_killed()
        process.kill()
    assert read == [f"/proc/{process.pid}/status"]
