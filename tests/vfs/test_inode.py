"""Directories, inode numbers, and the default refusals of a node."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.errors import KtaskfsError
from ktaskfs.vfs import (
    ROOT_INO,
    Attributes,
    Caller,
    InodeNumbers,
    OpenFile,
    StaticDirectory,
    TextFile,
)
from ktaskfs.vfs.inode import wants_read, wants_write

ROOT = Caller(0, 0, 1)


def text_file(ino: int) -> TextFile:
    return TextFile(ino, Attributes(0o444), lambda caller: "text\n")


def test_a_static_directory_finds_and_lists_its_children() -> None:
    inner = StaticDirectory(3, Attributes(0o755), {})
    file = text_file(2)
    root = StaticDirectory(ROOT_INO, Attributes(0o755), {"file": file, "inner": inner})
    assert root.lookup("file", ROOT) is file
    assert root.lookup("nothing", ROOT) is None
    assert root.names(ROOT) == ["file", "inner"]


def test_a_static_directory_counts_its_subdirectories_as_links() -> None:
    inner = StaticDirectory(3, Attributes(0o755), {})
    assert inner.nlink == 2
    assert StaticDirectory(ROOT_INO, Attributes(0o755), {"file": text_file(2), "inner": inner}).nlink == 3
    assert text_file(4).nlink == 1


async def test_a_directory_makes_and_removes_nothing_by_default() -> None:
    root = StaticDirectory(ROOT_INO, Attributes(0o755), {"inner": StaticDirectory(2, Attributes(0o755), {})})
    with pytest.raises(KtaskfsError) as made:
        await root.mkdir("new", ROOT)
    with pytest.raises(KtaskfsError) as removed:
        await root.rmdir("inner", ROOT)
    assert (made.value.errno, removed.value.errno) == (errno.EPERM, errno.EPERM)


async def test_an_open_file_reads_and_writes_nothing_by_default() -> None:
    file = OpenFile()
    with pytest.raises(KtaskfsError) as read:
        await file.read(0, 1)
    with pytest.raises(KtaskfsError) as written:
        await file.write(0, b"x")
    assert (read.value.errno, written.value.errno) == (errno.EACCES, errno.EACCES)


@given(st.lists(st.integers(1, 50)))
def test_no_inode_number_is_given_twice(counts: list[int]) -> None:
    numbers = InodeNumbers()
    given_out = [ROOT_INO]
    for count in counts:
        first = numbers.take(count)
        given_out += range(first, first + count)
    assert len(set(given_out)) == len(given_out)


@pytest.mark.parametrize(
    ("flags", "reads", "writes"),
    [
        (os.O_RDONLY, True, False),
        (os.O_WRONLY | os.O_TRUNC, False, True),
        (os.O_RDWR | os.O_APPEND, True, True),
    ],
)
def test_what_open_flags_ask_for(flags: int, reads: bool, writes: bool) -> None:
    assert (wants_read(flags), wants_write(flags)) == (reads, writes)
