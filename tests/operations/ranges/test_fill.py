"""``fill`` and ``verify`` write and check a repeated pattern."""

from __future__ import annotations

import errno
import mmap
import os
import random
import resource
import subprocess
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import Finding, InvalidValue
from ktaskfs.ktask import Job
from ktaskfs.operations.ranges._pattern import HEX, repeated
from ktaskfs.operations.ranges.verify import _Verifier
from ktaskfs.span import Node, Span
from tests.support.forked import run_forked
from tests.support.memory_files import allocated, dirty, is_all, repeats

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ktaskfs.operations.base.plan import Plan
    from tests.support.runner import Place, Runner

HUGE = 2 << 20


def result_of(plan: Plan) -> dict[str, int]:
    """Run a plan; the counts of its result."""
    return counts(plan.finish(Job(plan.nodes, plan.control).run()))


def counts(text: str) -> dict[str, int]:
    head = text.partition("offset")[0]
    return {key: int(value) for key, value in map(str.split, head.splitlines())}


def found(runner: Runner, **texts: object) -> Finding:
    plan = runner.prepare("verify", **texts)
    outcome = Job(plan.nodes, plan.control).run()
    with pytest.raises(Finding) as caught:
        plan.finish(outcome)
    return caught.value


def make(place: Place) -> tuple[Path, int]:
    """A file of ones."""
    path, length = place.directory / "file", 2 * place.unit if place.unit > HUGE else 32 << 20
    path.touch()
    os.truncate(path, length)
    dirty(path, 0, length)
    return path, length


def holds(path: Path, pattern: bytes, start: int, end: int) -> bool:
    """Whether the pattern is there, counted from the beginning of the file."""
    turn = start % len(pattern)
    return repeats(pattern[turn:] + pattern[:turn], path, start, end)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Through a mapping: hugetlbfs has no write(2)."""
    with path.open("rb+") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[offset : offset + len(data)] = data


@pytest.mark.parametrize("pattern", ["00", "deadbeef", "0x010203", "a5" * 4096])
def test_the_pattern_is_where_it_belongs(runner: Runner, any_place: Place, pattern: str) -> None:
    path, length = make(any_place)
    before = allocated(path)
    assert result_of(runner.prepare("fill", path=path, pattern=pattern)) == {"written": length}
    assert holds(path, HEX.parse(pattern), 0, length)
    assert allocated(path) == before
    assert result_of(runner.prepare("verify", path=path, pattern=pattern))["compared"] == length


@pytest.mark.parametrize("seed", range(8))
def test_any_range_in_any_chunks(runner: Runner, place: Place, seed: int) -> None:
    chance = random.Random(seed)
    path, length = make(place)
    pattern = chance.randbytes(chance.choice([1, 2, 3, 7, 1000, 4095]))
    start = chance.randrange(length - 1)
    end = chance.randrange(start + 1, length)
    texts = {"path": path, "offset": start, "length": end - start, "pattern": pattern.hex(), "chunk": HUGE}
    runner.run("fill", **texts)
    assert is_all(0xFF, path, 0, start)
    assert holds(path, pattern, start, end)
    assert is_all(0xFF, path, end, length)
    assert result_of(runner.prepare("verify", **texts))["compared"] == end - start
    middle = (start + end) // 2  # a part gets the same pattern as in the whole
    assert result_of(runner.prepare("fill", [Node(middle, end - middle, -1)], **texts))["written"] == end - middle
    assert holds(path, pattern, start, end)


def test_holes_stay_and_are_counted(runner: Runner, any_place: Place) -> None:
    path, length = make(any_place)
    hole = max(any_place.unit, HUGE)
    subprocess.run(["fallocate", "-p", "-l", str(hole), str(path)], check=True)
    before = allocated(path)
    assert result_of(runner.prepare("fill", path=path)) == {"written": length - hole}
    result = result_of(runner.prepare("verify", path=path))
    assert (result["compared"], result["holes"], result["differing"]) == (length - hole, hole, 0)
    assert allocated(path) == before
    assert is_all(0, path, 0, hole)


def test_what_differs_is_found(runner: Runner, any_place: Place) -> None:
    path, length = make(any_place)
    runner.run("fill", path=path, pattern="00112233")
    places = [4098, 8193, HUGE - 1, HUGE, length // 2 + 12345, length - 1]
    for place in places:
        overwrite(path, place, b"\xee")
    finding = found(runner, path=path, pattern="00112233")
    assert (finding.errno, finding.position) == (errno.EIO, 4098)
    assert "6 bytes" in finding.message
    result = counts(finding.result)
    assert result["differing"] == 6
    assert result["rows"] == 6
    assert result["left_out"] == 0
    rows = [row.split() for row in finding.result.partition("found\n")[2].splitlines()]
    assert [int(row[0]) for row in rows] == places
    assert rows[0][1:] == ["1", "2233001122330011", "ee33001122330011"]
    assert (
        result_of(runner.prepare("verify", path=path, pattern="00112233", offset=4099, length=100))["compared"] == 100
    )


def test_what_is_cut_off_meanwhile_is_no_hole(runner: Runner, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = make(place)
    present = _Verifier._present

    def cut(verifier: _Verifier, start: int, end: int) -> Iterator[Span]:
        os.truncate(path, 0)
        return present(verifier, start, end)

    plan = runner.prepare("verify", path=path, pattern="ff", chunk=1 << 30)
    monkeypatch.setattr(_Verifier, "_present", cut)
    assert runner.failure(plan).errno == errno.ENXIO


def test_everything_differs(runner: Runner, place: Place) -> None:
    path, length = make(place)
    finding = found(runner, path=path, pattern="00")
    result = counts(finding.result)
    assert result["differing"] == result["compared"] == length
    assert result["rows"] == length // 4096
    assert result["left_out"] == result["rows"] - 1000
    assert len(finding.result) < 1 << 20


@pytest.mark.parametrize("length", [1, 3, 64, 127, 4093, 4095, 4096])
def test_a_block_has_whole_patterns_and_whole_cache_lines(length: int) -> None:
    pattern = random.Random(length).randbytes(length)
    block = repeated(pattern)
    assert block == pattern * (len(block) // length)
    assert len(block) % 64 == 0
    assert 512 << 10 <= len(block) < (512 << 10) + 64 * length


def test_the_default_pattern_shows_memory_at_a_wrong_address(runner: Runner, place: Place) -> None:
    block = repeated(None)
    assert len(block) % 4093 == 0
    pages = {(page << 12) % 4093 for page in (1 << bit for bit in range(50))}
    assert 0 not in pages, "a page that is off by a power of two holds what it should"
    path, _ = make(place)
    runner.run("fill", path=path)
    with path.open("rb") as file:
        first = file.read(4096)
    overwrite(path, 1 << 20, first)  # the page shows up a second time
    finding = found(runner, path=path)
    assert 1 << 20 <= finding.position < (1 << 20) + 4096
    assert counts(finding.result)["differing"] > 4000


def test_a_sparse_file_past_16_tib(runner: Runner, tmpfs: Path) -> None:
    path, size = tmpfs / "file", 40 << 40
    path.touch()
    os.truncate(path, size)
    with path.open("rb+") as file:
        os.pwrite(file.fileno(), b"x" * 8192, size - 8192)
    texts = {"path": path, "offset": size - (1 << 30), "pattern": "010203"}
    written = allocated(path)
    assert result_of(runner.prepare("fill", **texts))["written"] <= written
    assert holds(path, b"\1\2\3", size - 8192, size)
    assert result_of(runner.prepare("verify", **texts))["holes"] >= (1 << 30) - written


def test_the_limit_of_file_sizes_is_for_the_callers_files(runner: Runner, place: Place) -> None:
    path, length = make(place)
    limits = (4096, resource.RLIM_INFINITY)

    def attempt() -> list[object]:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        written = result_of(runner.prepare("fill", path=path, pattern="5a"))["written"]
        return [written, *resource.getrlimit(resource.RLIMIT_FSIZE)]

    assert run_forked(attempt) == [length, *limits]
    assert is_all(0x5A, path, 0, length)


@pytest.mark.parametrize("pattern", ["", "0", "0x", "xyz", "12 34", "+1", "ab" * 4097])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(InvalidValue):
        HEX.parse(pattern)
