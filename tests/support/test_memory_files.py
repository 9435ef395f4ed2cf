"""What the tests themselves say of a file's bytes, against cmp(1)."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.memory_files import STEP, content, is_all, repeats, same, write_bytes

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 2 * STEP + 5


def cmp(first: Path, second: Path, length: int) -> bool:
    return subprocess.run(["cmp", "-s", "-n", str(length), first, second], check=False).returncode == 0


@pytest.mark.parametrize("place", [0, STEP - 1, STEP, 2 * STEP + 4])
def test_one_byte_that_differs_is_found(tmp_path: Path, place: int) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    data = bytearray(SIZE)
    file.write_bytes(data)
    assert is_all(0, file, 0, SIZE)
    data[place] = 1
    other.write_bytes(data)
    assert not is_all(0, other, 0, SIZE)
    assert is_all(0, other, 0, place)
    assert is_all(0, other, place + 1, SIZE)
    assert is_all(1, other, place, place + 1)
    for length in (place, place + 1, SIZE, SIZE + 1):
        assert same(file, other, length) is cmp(file, other, length) is (length == place)


def test_the_end_of_a_file(tmp_path: Path) -> None:
    """Bytes that are missing are no zeros, and are the same in two files only if both end there."""
    short, long = tmp_path / "short", tmp_path / "long"
    short.write_bytes(bytes(SIZE))
    long.write_bytes(bytes(SIZE + 1))
    assert not is_all(0, short, 0, SIZE + 1)
    assert same(short, short, SIZE + 1) is cmp(short, short, SIZE + 1) is True
    assert same(short, long, SIZE + 1) is cmp(short, long, SIZE + 1) is False
    assert same(short, long, SIZE, (0, 1))


@pytest.mark.parametrize("size", [1, 3, 4096, STEP + 1])
def test_a_pattern_of_any_length(tmp_path: Path, size: int) -> None:
    pattern = content(size)
    write_bytes(tmp_path / "file", (pattern * (SIZE // size + 1))[:SIZE])
    assert repeats(pattern, tmp_path / "file", 0, SIZE)
    assert repeats(pattern, tmp_path / "file", size, SIZE)
    assert repeats(pattern[-1:] + pattern[:-1], tmp_path / "file", 0, SIZE) is (size == 1)
