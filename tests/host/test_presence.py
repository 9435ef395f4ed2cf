"""Holes that come while they are looked for."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.host.presence import data_extents, hole_extents, union
from ktaskfs.span import Span

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.runner import Runner

PAGE = 4096
PAGES = 32
LENGTH = PAGES * PAGE


@pytest.fixture
def punched(tmpfs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of ones; of the page that SEEK_DATA finds first a hole is made before SEEK_HOLE is asked."""
    path = tmpfs / "file"
    path.write_bytes(b"\xff" * LENGTH)
    lseek, left = os.lseek, [1]

    def seek(fd: int, position: int, whence: int) -> int:
        found = lseek(fd, position, whence)
        if whence == os.SEEK_DATA and left:
            left.pop()
            hole = found - found % PAGE
            subprocess.run(["fallocate", "-p", "-o", str(hole), "-l", str(2 * PAGE), str(path)], check=True)
        return found

    monkeypatch.setattr(os, "lseek", seek)
    return path


def test_a_run_that_is_punched_out_is_left_out(punched: Path) -> None:
    with punched.open("rb") as file:
        runs = list(data_extents(file.fileno(), PAGE, LENGTH))
        assert all(start < end for start, end in runs)
        assert runs[-1] == (3 * PAGE, LENGTH)
        assert list(hole_extents(file.fileno(), PAGE, LENGTH)) == [(PAGE, 3 * PAGE)]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_where_nothing_tells_holes_all_is_data(disk: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As of a block device, or of a server of FUSE."""
    (disk / "file").write_bytes(bytes(LENGTH))

    def seek(fd: int, position: int, whence: int) -> int:
        raise OSError(number, os.strerror(number))

    with (disk / "file").open("rb") as file:
        monkeypatch.setattr(os, "lseek", seek)
        assert list(data_extents(file.fileno(), PAGE, LENGTH)) == [(PAGE, LENGTH)]


@pytest.mark.parametrize("name", ["clear", "fill", "survey", "migrate", "checksum"])
def test_operations_pass_over_it(runner: Runner, punched: Path, name: str) -> None:
    nodes = {"nodes": "0"} if name == "migrate" else {}
    result = runner.result(runner.prepare(name, path=punched, offset=PAGE, **nodes), threads=1)
    if name == "fill":
        assert result == f"written {LENGTH - 3 * PAGE}\n"
    if name == "survey":
        assert f"\npresent {PAGES - 3}\nholes 2\n" in result
    if name == "migrate":
        assert f"\nthere {PAGES - 3}\n" in result


RUNS = st.lists(st.integers(0, 60), max_size=12, unique=True).map(
    lambda edges: [Span(*pair) for pair in zip(*[iter(sorted(edges))] * 2, strict=False)]
)


@given(RUNS, RUNS)
def test_the_union_has_what_one_of_them_has(one: list[Span], two: list[Span]) -> None:
    found = list(union(one, two))
    assert {at for run in found for at in range(*run)} == {at for run in [*one, *two] for at in range(*run)}
    assert all(before.end < after.start for before, after in itertools.pairwise(found)), "touching runs are one"


def test_the_union_of_long_lists_is_made_step_by_step() -> None:
    def endless() -> Iterator[Span]:
        for number in range(5):
            yield Span(10 * number, 10 * number + 5)
        raise AssertionError("more than is needed")

    assert next(union(endless(), [Span(5, 7)])) == Span(0, 7)
