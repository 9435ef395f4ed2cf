"""Copies of data between short holes, which is read at once."""

from __future__ import annotations

import errno
import os
import random
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import TargetError
from ktaskfs.memory.sinks import FEW, GATHERED, NEAR, near
from ktaskfs.span import Span
from tests.operations.ranges.digests import digest_of
from tests.support import filesystems
from tests.support.memory_files import allocated, content

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.runner import Runner

PAGE = 4096
COUNT = 500
SIZE = COUNT * 2 * PAGE
"""A page of data and a page of hole, COUNT times."""


def spans(*lengths: int) -> list[Span]:
    """Runs from lengths of data, hole, data and so on."""
    ends = [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    return [Span(*pair) for pair in zip(ends[::2], ends[1::2], strict=False)]


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ((), []),
        ((PAGE, NEAR, PAGE, NEAR, PAGE), [3]),
        ((PAGE, NEAR + PAGE, PAGE), [1, 1]),
        ((PAGE, PAGE, FEW, PAGE, PAGE, PAGE, FEW - PAGE), [1, 1, 2]),
        ((PAGE, PAGE) * (GATHERED // PAGE // 2) + (PAGE,), [GATHERED // PAGE // 2, 1]),
    ],
)
def test_what_is_near(lengths: tuple[int, ...], sizes: list[int]) -> None:
    runs = spans(*lengths)
    found = list(near(runs))
    assert [len(each) for each in found] == sizes
    assert [run for each in found for run in each] == runs


@pytest.fixture(params=["tmpfs", "disk"])
def target(request: pytest.FixtureRequest, area: Path) -> Iterator[Path]:
    """A file that does not exist yet."""
    if request.param == "disk":
        yield area / "file"
        return
    with filesystems.tmpfs(area / "small", 4 * SIZE, "huge=never") as directory:
        yield directory / "file"


@pytest.fixture
def source(area: Path) -> Iterator[Path]:
    with filesystems.tmpfs(area / "from", 16 * SIZE, "huge=never") as directory:
        path = directory / "source"
        write_runs(path, spans(*[PAGE] * (2 * COUNT)), SIZE)
        yield path


def write_runs(path: Path, runs: list[Span], size: int) -> None:
    with path.open("wb") as file:
        for run in runs:
            file.seek(run.start)
            file.write(content(run.size, run.start))
        file.truncate(size)


@pytest.mark.parametrize("digest", [{}, {"digest": "sha256"}], ids=["", "sha256"])
@pytest.mark.parametrize("old", [0, SIZE // 2 + 100, SIZE])
def test_short_holes_stay_holes(runner: Runner, source: Path, target: Path, digest: dict[str, str], old: int) -> None:
    target.write_bytes(b"\xff" * old)
    found = runner.result(runner.prepare("copy", source=source, path=target, **digest))
    assert target.read_bytes() == source.read_bytes()
    assert allocated(target) == allocated(source) == SIZE // 2
    assert found == (digest_of(source.read_bytes(), "sha256") if digest else "")


@pytest.mark.parametrize("seed", range(3))
def test_runs_of_all_lengths(runner: Runner, source: Path, target: Path, seed: int) -> None:
    """And at other places of the two files."""
    choose = random.Random(seed)
    lengths = [choose.choice((PAGE, 2 * PAGE, 3 * PAGE, FEW - PAGE, FEW, GATHERED)) for _ in range(60)]
    write_runs(source, spans(*lengths), sum(lengths))
    target.write_bytes(b"\xff" * 100)
    runner.run("copy", source=source, path=target, offset=50 * PAGE + 7, source_offset=3)
    assert target.read_bytes()[50 * PAGE + 7 :] == source.read_bytes()[3:]
    assert target.read_bytes()[100 : 50 * PAGE + 7] == bytes(50 * PAGE - 93)


def test_few_reads(runner: Runner, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    original = os.preadv

    def counted(fd: int, views: list[memoryview], position: int) -> int:
        reads.append(position)
        return original(fd, views, position)

    monkeypatch.setattr(os, "preadv", counted)
    runner.run("copy", source=source, path=target)
    assert 0 < len(reads) <= -(-SIZE // GATHERED) + 1


def test_the_source_is_cut_before_the_read(
    runner: Runner, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = runner.prepare("copy", source=source, path=target)
    original = os.preadv

    def cut(fd: int, views: list[memoryview], position: int) -> int:
        os.truncate(source, GATHERED // 2 + 100)
        return original(fd, views, position)

    monkeypatch.setattr(os, "preadv", cut)
    error = runner.failure(plan)
    assert isinstance(error, TargetError)
    assert (error.errno, str(source) in error.message) == (errno.ENXIO, True)


@pytest.mark.parametrize("at", [0, 5, COUNT // 2, COUNT - 2])
def test_the_target_is_cut_after_any_write(
    runner: Runner, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Not after the very last one: the size at the end of the task is not one of a sink."""
    plan = runner.prepare("copy", source=source, path=target)
    original, written = os.pwrite, 0

    def cut(fd: int, view: memoryview, position: int) -> int:
        nonlocal written
        count = original(fd, view, position)
        if written == at:
            os.truncate(target, 0)
        written += 1
        return count

    monkeypatch.setattr(os, "pwrite", cut)
    error = runner.failure(plan)
    assert isinstance(error, TargetError)
    assert (error.errno, str(target) in error.message) == (errno.ENXIO, True)
    assert target.stat().st_size < SIZE - PAGE


def test_short_writes_go_on(runner: Runner, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, view, position: original(fd, view[:1000], position))
    runner.run("copy", source=source, path=target)
    assert target.read_bytes() == source.read_bytes()


def test_no_space_for_a_run(runner: Runner, source: Path, area: Path) -> None:
    with filesystems.tmpfs(area / "full", SIZE, "huge=never") as directory:
        plan = runner.prepare("copy", source=source, path=directory / "file")
        (directory / "other").write_bytes(bytes(SIZE * 3 // 4))
        error = runner.failure(plan)
        assert isinstance(error, TargetError)
        assert error.errno == errno.ENOSPC
