"""Threads that copy parts of one file at the same time."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host import userfaultfd
from ktaskfs.host.target import directory_as_target
from ktaskfs.operations.trees._data import FileData
from ktaskfs.span import Span
from tests.operations.trees.ground import overlapping_sends
from tests.support.memory_files import content, punch
from tests.support.poll import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
PART = 16 * MIB
PARTS = 4
SIZE = PARTS * PART - 1234
HOLE = PART + 3 * MIB, 5 * MIB


@dataclass(frozen=True)
class Copying:
    """A copy of a file with a hole into an empty one."""

    data: FileData
    source: int
    target: int
    paths: tuple[Path, Path]

    def part(self, number: int) -> None:
        """Copy the part of that number, of one of several threads."""
        self.data.copy_shared(self.source, self.target, Span(number * PART, min((number + 1) * PART, SIZE)), 5)

    def require_same(self) -> None:
        """The copy equals the file, holes included."""
        source, target = self.paths
        assert source.read_bytes() == target.read_bytes()
        assert target.stat().st_blocks * 512 <= (SIZE + 4096) - HOLE[1]


@contextlib.contextmanager
def into(disk: Path, where: Path) -> Iterator[Copying]:
    source, target = disk / "source", where / "target"
    source.write_bytes(content(SIZE))
    punch(source, *HOLE)
    target.touch()
    os.truncate(target, SIZE)
    with source.open("rb") as reader, target.open("r+b") as writer:
        directory = os.open(where, os.O_PATH)
        try:
            data = FileData(directory_as_target(directory, str(where)))
            yield Copying(data, reader.fileno(), writer.fileno(), (source, target))
        finally:
            os.close(directory)


class Writer:
    """A thread that is about to write the first part of a file; it goes on when it is let."""

    def __init__(self, copying: Copying, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes, self.go_on = threading.Event(), threading.Event()
        self.calls: list[int] = []
        real = os.sendfile

        def sendfile(target: int, source: int, position: int, count: int) -> int:
            self.calls.append(position)
            self.writes.set()
            assert self.go_on.wait(DEADLINE)
            return real(target, source, position, count)

        monkeypatch.setattr(os, "sendfile", sendfile)
        self._pool = ThreadPoolExecutor(1)
        self._copy = self._pool.submit(copying.part, 0)
        assert self.writes.wait(DEADLINE)

    def end(self) -> None:
        """Let it go on, and wait for its end."""
        self.go_on.set()
        self._copy.result()
        self._pool.shutdown()


def copy_beside_the_writer(copying: Copying, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread writes the first part until the others are copied, without a write; then all is the same."""
    writer = Writer(copying, monkeypatch)
    for number in range(1, PARTS):
        copying.part(number)
    assert writer.calls == [0]
    writer.end()
    assert copying.paths[0].read_bytes() == copying.paths[1].read_bytes()


def test_beside_the_one_that_writes_into_tmpfs_others_copy_through_mappings(
    disk: Path, tmpfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with into(disk, tmpfs) as copying:
        copy_beside_the_writer(copying, monkeypatch)
        if os.fstat(copying.target).st_blksize == 4096:
            copying.require_same()


def test_pages_that_exist_are_overwritten(disk: Path, tmpfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an earlier run of the task."""
    with into(disk, tmpfs) as copying:
        copying.paths[1].write_bytes(b"old" * (SIZE // 3) + b"o" * (SIZE % 3))
        punch(copying.paths[1], *HOLE)
        copy_beside_the_writer(copying, monkeypatch)


@pytest.mark.parametrize("why", ["forbidden", "short"])
def test_where_they_cannot_they_write_when_it_is_their_turn(
    disk: Path, tmpfs: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """A filter forbids userfaultfd(2), or there is no memory for a mapping."""

    def refused(*arguments: object, **options: object) -> int:
        raise OSError(errno.EPERM if why == "forbidden" else errno.ENOMEM, why)

    with into(disk, tmpfs) as copying:
        if why == "forbidden":
            monkeypatch.setattr(userfaultfd, "create", refused)
        else:
            monkeypatch.setattr("ktaskfs.operations.trees._data.Mapping", refused)
        writer = Writer(copying, monkeypatch)
        with ThreadPoolExecutor(2) as pool:
            others = [pool.submit(copying.part, number) for number in range(1, PARTS)]
            writer.end()
            for other in others:
                other.result()
        assert copying.paths[0].read_bytes() == copying.paths[1].read_bytes()
        assert 0 in writer.calls


def test_one_at_a_time_writes_to_a_file_on_a_disk(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for the lock of the inode keep their CPUs busy."""
    (disk / "copy").mkdir()
    overlaps = overlapping_sends(monkeypatch)
    with into(disk, disk / "copy") as copying, ThreadPoolExecutor(PARTS) as pool:
        for each in [pool.submit(copying.part, number) for _ in range(5) for number in range(PARTS)]:
            each.result()
        assert overlaps == []
        copying.require_same()


def test_a_source_that_ends_early_is_busy(disk: Path, tmpfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is truncated just after the look at its holes."""

    def everything(fd: int, start: int, end: int) -> Iterator[Span]:
        yield Span(start, end)

    with into(disk, tmpfs) as copying:
        writer = Writer(copying, monkeypatch)
        monkeypatch.setattr("ktaskfs.operations.trees._data.data_extents", everything)
        os.truncate(copying.paths[0], SIZE - MIB)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(copying.part, PARTS - 1)
            writer.end()
            with pytest.raises(OSError, match="busy") as caught:
                other.result()
        assert caught.value.errno == errno.EBUSY
