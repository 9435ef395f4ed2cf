from __future__ import annotations

import json
import os
import random
import subprocess
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from ktaskfs.operations.ranges.compare import PIECE
from tests.support.as_caller import as_nobody
from tests.support.memory_files import HUGE, TIB, allocated, content, make_dirty, punch, write_bytes
from tests.support.runner import not_begun

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hugepages import TestPool
    from tests.support.runner import Place, Runner

SIZE = 18 * HUGE
EQUAL = "equal\n"


def compare(runner: Runner, first: Path | str, second: Path | str, *, threads: int = 2, **texts: object) -> str:
    return runner.result(runner.prepare("compare", path=first, source=second, **texts), threads=threads)


def cmp(first: Path, second: Path) -> str:
    """The findings of cmp(1), in the words of ``compare``."""
    lines = subprocess.run(
        ["cmp", "-l", str(first), str(second)], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    return f"first {int(lines[0].split()[0]) - 1}\ndiffering {len(lines)}\n" if lines else EQUAL


@pytest.fixture
def plain(disk: Path) -> Path:
    (disk / "plain").write_bytes(content(SIZE))
    return disk / "plain"


def test_equal(runner: Runner, any_place: Place, plain: Path) -> None:
    path = any_place.directory / "file"
    before = os.listdir("/proc/self/fd")
    runner.run("copy", source=plain, path=path)
    assert compare(runner, path, plain, length=SIZE) == EQUAL
    assert compare(runner, plain, path, length=SIZE, threads=1) == EQUAL
    assert compare(runner, path, path) == EQUAL
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("seed", range(4))
def test_differences_as_cmp_finds_them(runner: Runner, place: Place, plain: Path, seed: int) -> None:
    path, rng = place.directory / "file", random.Random(seed)
    data = bytearray(plain.read_bytes())
    for _ in range(rng.choice((1, 2, 50))):
        position, length = rng.randrange(SIZE), rng.choice((1, 7, 4096, 100_000))
        data[position : position + length] = rng.randbytes(len(data[position : position + length]))
    write_bytes(path, data)
    expected = cmp(path, plain)
    for threads in (1, 3):
        assert compare(runner, path, plain, chunk=1 << 20, threads=threads) == expected


def test_many_runs_take_no_memory(runner: Runner, tmpfs: Path) -> None:
    path, runs = tmpfs / "file", 10_000
    with path.open("wb") as file:
        for number in range(runs):
            file.seek(2 * number * 4096)
            file.write(b"x" * 4096)
    plan = runner.prepare("compare", path=path, source=path, chunk=1 << 30)
    plan.control.thread_func(0, PIECE)  # makes the buffer
    tracemalloc.start()
    try:
        plan.control.thread_func(0, path.stat().st_size)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        plan.abort()
    assert most < 100 * runs


def test_the_first_and_the_last_byte(runner: Runner, place: Place, plain: Path) -> None:
    path = place.directory / "file"
    data = bytearray(plain.read_bytes())
    data[-1] ^= 1
    write_bytes(path, data)
    assert compare(runner, path, plain) == f"first {SIZE - 1}\ndiffering 1\n"
    data[0] ^= 0x80
    write_bytes(path, data)
    assert compare(runner, path, plain) == "first 0\ndiffering 2\n"
    assert compare(runner, path, plain, offset=1, source_offset=1, length=SIZE - 2) == EQUAL


def test_all_differs(runner: Runner, place: Place, area: Path) -> None:
    make_dirty(place.directory / "file", 4 * HUGE)
    (area / "zeros").touch()
    os.truncate(area / "zeros", 4 * HUGE)
    for first, second in ((place.directory / "file", area / "zeros"), (area / "zeros", place.directory / "file")):
        assert compare(runner, first, second) == f"first 0\ndiffering {4 * HUGE}\n"


def test_ranges_that_are_not_aligned(runner: Runner, place: Place, plain: Path) -> None:
    path, data = place.directory / "file", plain.read_bytes()
    write_bytes(path, data[777:])
    texts = {"offset": 5, "source_offset": 782}
    assert compare(runner, path, plain, length=16 * HUGE, **texts) == EQUAL
    changed = bytearray(data)
    changed[10_000_000] ^= 1
    plain.write_bytes(changed)
    assert compare(runner, path, plain, length=16 * HUGE, **texts) == f"first {10_000_000 - 777}\ndiffering 1\n"


def test_what_one_file_lacks_differs(runner: Runner, tmpfs: Path, plain: Path) -> None:
    (tmpfs / "file").write_bytes(plain.read_bytes() + b"tail")
    for first, second in ((tmpfs / "file", plain), (plain, tmpfs / "file")):
        assert compare(runner, first, second) == f"first {SIZE}\ndiffering 4\n"
    (tmpfs / "empty").touch()
    assert compare(runner, tmpfs / "empty", tmpfs / "empty") == EQUAL
    assert compare(runner, tmpfs / "empty", plain) == f"first 0\ndiffering {SIZE}\n"
    assert compare(runner, plain, tmpfs / "empty", offset=SIZE - 3) == f"first {SIZE - 3}\ndiffering 3\n"


def weights(path: Path, size: int) -> Path:
    """A file as safetensors has it: the length of a JSON header, the header, and the numbers of one tensor."""
    shape = [(size - 256) // 2]
    header = json.dumps({"layer.weight": {"dtype": "F16", "shape": shape, "data_offsets": [0, 2 * shape[0]]}})
    head = len(header).to_bytes(8, "little") + header.encode()
    path.write_bytes(head + content(size - len(head)))
    return path


def test_weights_that_do_not_fill_their_last_page(runner: Runner, any_place: Place, area: Path) -> None:
    """hugetlbfs has no size but whole pages, so a copy there ends in zeros that the file itself has not."""
    path, size = any_place.directory / "file", 7 * HUGE + 12_345
    source = weights(area / "model.safetensors", size)
    runner.run("copy", source=source, path=path)
    assert path.stat().st_size == -(-size // any_place.unit) * any_place.unit or any_place.unit == 4096
    assert compare(runner, path, source) == compare(runner, source, path, threads=1) == EQUAL
    assert compare(runner, path, source, offset=777, source_offset=777) == EQUAL
    changed = bytearray(source.read_bytes())
    changed[-1] ^= 1
    source.write_bytes(changed)
    assert compare(runner, path, source) == compare(runner, source, path) == f"first {size - 1}\ndiffering 1\n"


def test_a_last_page_that_is_not_filled_with_zeros(
    runner: Runner, pool: TestPool, hugetlbfs: Path, page_size: int, area: Path
) -> None:
    path, size = hugetlbfs / "file", HUGE + 12_345
    source = weights(area / "model.safetensors", size)
    whole = -(-size // page_size) * page_size
    write_bytes(path, source.read_bytes() + bytes(whole - size - 9) + b"remains x")
    assert compare(runner, path, source) == f"first {whole - 9}\ndiffering 9\n"
    texts = {"offset": 5, "source_offset": 5, "chunk": 1 << 20}
    assert compare(runner, source, path, **texts) == f"first {whole - 9}\ndiffering 9\n"
    os.truncate(source, size - 1)
    assert compare(runner, path, source) == f"first {size - 1}\ndiffering 10\n"


def test_a_whole_page_more_is_no_filling(
    runner: Runner, pool: TestPool, hugetlbfs: Path, page_size: int, area: Path
) -> None:
    path, source = hugetlbfs / "file", area / "source"
    path.touch()
    os.truncate(path, page_size)
    source.touch()
    for first, second in ((path, source), (source, path)):
        assert compare(runner, first, second) == f"first 0\ndiffering {page_size}\n"
    source.write_bytes(b"\0")
    assert compare(runner, path, source) == EQUAL
    os.truncate(path, 2 * page_size)
    more = 2 * page_size - 1
    assert compare(runner, path, source) == compare(runner, source, path) == f"first 1\ndiffering {more}\n"


def test_holes_are_zeros_and_stay_holes(runner: Runner, place: Place, area: Path) -> None:
    path, other = place.directory / "file", area / "other"
    data = bytearray(content(8 * HUGE))
    write_bytes(path, data)
    for page in (0, 3, 7):
        punch(path, page * HUGE, HUGE)
        data[page * HUGE : (page + 1) * HUGE] = bytes(HUGE)
    other.write_bytes(data)
    punch(other, 3 * HUGE, HUGE)
    assert compare(runner, path, other) == compare(runner, other, path) == EQUAL
    data[HUGE - 5] = 1
    other.write_bytes(data)
    assert compare(runner, path, other) == f"first {HUGE - 5}\ndiffering 1\n"
    assert allocated(path) == 5 * HUGE


def test_sparse_files_past_16_tib(runner: Runner, place: Place) -> None:
    first, second = place.directory / "first", place.directory / "second"
    for path in (first, second):
        path.touch()
        os.truncate(path, 40 * TIB)
    assert compare(runner, first, second, chunk=TIB) == EQUAL
    write_bytes(second, bytes(HUGE - 1) + b"x", 40 * TIB - HUGE)
    start = 0 if place.unit == 4096 else 39 * TIB  # each page of hugetlbfs has to be tried
    found = compare(runner, first, second, chunk=TIB, offset=start, source_offset=start)
    assert found == f"first {40 * TIB - 1}\ndiffering 1\n"
    assert allocated(first) == 0


def test_somebody_elses_files(runner: Runner, place: Place) -> None:
    for name in ("first", "second"):
        write_bytes(place.directory / name, bytes(HUGE) + content(HUGE))
        punch(place.directory / name, 0, HUGE)
        (place.directory / name).chmod(0o644)

    def work() -> str:
        return compare(runner, "/first", "/second")

    assert as_nobody(place.directory, work) == EQUAL
    assert allocated(place.directory / "first") == HUGE


def test_what_was_not_finished_has_no_result(runner: Runner, plain: Path) -> None:
    plan = runner.prepare("compare", path=plain, source=plain)
    plan.control.thread_func(0, HUGE)
    assert plan.finish(not_begun(plan)) == ""


def test_refusals(runner: Runner, plain: Path) -> None:
    assert "past the end" in runner.refused("compare", path=plain, source=plain, length=SIZE, source_offset=1).message
    assert "past the end" in runner.refused("compare", path=plain, source=plain, source_offset=SIZE + 1).message
