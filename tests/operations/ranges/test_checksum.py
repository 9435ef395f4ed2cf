from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ktaskfs.errors import Finding, InvalidValue, NotSupported, TargetError
from ktaskfs.ktask import TaskError
from ktaskfs.memory import digest
from ktaskfs.memory.digest import ALGORITHMS, LEAF, digest_maker
from tests.operations.ranges.digests import digest_of
from tests.support.as_caller import as_nobody
from tests.support.memory_files import HUGE, TIB, allocated, content, is_all, punch, write_bytes
from tests.support.runner import not_begun

if TYPE_CHECKING:
    from tests.support.runner import Place, Runner


def checksum(runner: Runner, *, threads: int = 2, **texts: object) -> str:
    plan = runner.prepare("checksum", **texts)
    return runner.result(plan, threads=threads)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_any_memory(runner: Runner, place: Place, algorithm: str) -> None:
    path, data = place.directory / "file", content(18 * HUGE)
    write_bytes(path, data)
    before = os.listdir("/proc/self/fd")
    for threads in (1, 2, 5):
        assert checksum(runner, path=path, algorithm=algorithm, threads=threads) == digest_of(data, algorithm)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [1, LEAF - 1, LEAF, LEAF + 1, 3 * LEAF, 7 * LEAF + 5, 8 * LEAF])
def test_odd_sizes_on_any_filesystem(runner: Runner, area: Path, algorithm: str, size: int) -> None:
    (area / "file").write_bytes(data := content(size))
    assert checksum(runner, path=area / "file", algorithm=algorithm) == digest_of(data, algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_range_and_any_chunks(runner: Runner, area: Path, algorithm: str) -> None:
    (area / "file").write_bytes(data := content(21 * LEAF + 17))
    for offset, length in ((0, 5), (12345, 20 * LEAF), (LEAF, 3 * LEAF), (7, 21 * LEAF + 10)):
        for chunk in (1, 3 * LEAF, 64 * LEAF):
            found = checksum(
                runner, path=area / "file", algorithm=algorithm, offset=offset, length=length, chunk=chunk, threads=3
            )
            assert found == digest_of(data[offset : offset + length], algorithm)


def test_other_programs_agree(runner: Runner, area: Path) -> None:
    path = area / "file"
    path.write_bytes(content(3 * LEAF))
    packed = subprocess.run(["gzip", "-c", str(path)], capture_output=True, check=True).stdout
    assert checksum(runner, path=path) == f"crc32 {int.from_bytes(packed[-8:-4], 'little'):08x}\n"
    leaf = subprocess.run(
        ["bash", "-c", r'(printf "\0"; head -c 1M "$0") | sha256sum', path], capture_output=True, check=False
    )
    found = checksum(runner, path=path, algorithm="sha256", length=LEAF)
    assert found == f"sha256-tree {leaf.stdout.split()[0].decode()}\n"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_holes_are_zeros_and_stay_holes(runner: Runner, any_place: Place, algorithm: str) -> None:
    unit = max(any_place.unit, HUGE)
    path, pages = any_place.directory / "file", 2 if unit > HUGE else 16
    path.touch()
    os.truncate(path, pages * unit)
    assert is_all(0, path, 0, pages * unit)
    empty = checksum(runner, path=path, algorithm=algorithm)
    assert allocated(path) == 0
    if unit > HUGE:  # a GiB is too long for the reference
        subprocess.run(["fallocate", "-l", str(unit), path], check=True)
        assert checksum(runner, path=path, algorithm=algorithm) == empty
        assert allocated(path) == unit
        return
    assert empty == digest_of(bytes(pages * unit), algorithm)
    data = bytearray(content(pages * unit))
    write_bytes(path, data)
    for page in (0, 3, 4, 15):
        punch(path, page * unit, unit)
        data[page * unit : (page + 1) * unit] = bytes(unit)
    assert checksum(runner, path=path, algorithm=algorithm) == digest_of(data, algorithm)
    assert checksum(runner, path=path, algorithm=algorithm, offset=77, length=12 * unit) == digest_of(
        data[77 : 77 + 12 * unit], algorithm
    )
    assert allocated(path) == (pages - 4) * unit


def test_holes_of_somebody_elses_file(runner: Runner, place: Place) -> None:
    path = place.directory / "file"
    data = bytes(4 * HUGE) + content(HUGE)
    write_bytes(path, data)
    punch(path, 0, 4 * HUGE)
    path.chmod(0o644)

    def work() -> str:
        return checksum(runner, path="/file") + checksum(runner, path="/file", algorithm="sha256")

    assert as_nobody(place.directory, work) == digest_of(data, "crc32") + digest_of(data, "sha256")
    assert allocated(path) == HUGE


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_expected(runner: Runner, area: Path, algorithm: str) -> None:
    (area / "file").write_bytes(data := content(2 * LEAF))
    right = digest_of(data, algorithm).split()[1]
    found = checksum(runner, path=area / "file", algorithm=algorithm, expect=right.upper())
    assert found == digest_of(data, algorithm)
    wrong = f"{int(right[0], 16) ^ 1:x}{right[1:]}"
    with pytest.raises(Finding) as caught:
        checksum(runner, path=area / "file", algorithm=algorithm, expect=wrong, offset=0)
    assert caught.value.errno == errno.EBADMSG
    assert caught.value.result == digest_of(data, algorithm)
    assert f"is {right}, not {wrong}" in caught.value.message


def test_refusals(runner: Runner, area: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = area / "file"
    path.write_bytes(content(2 * LEAF))
    assert "8 hexadecimal digits" in runner.refused("checksum", path=path, expect="ab").message
    assert isinstance(runner.refused("checksum", path=path, expect="xyz"), InvalidValue)
    assert isinstance(runner.refused("checksum", path=path, algorithm="md5"), InvalidValue)
    monkeypatch.setattr(digest, "_MAKERS", {"blake3": ("blake3", None)})
    missing = runner.refused("checksum", path=path, algorithm="blake3")
    assert isinstance(missing, NotSupported)
    assert "package blake3" in missing.message


def test_what_was_not_finished_has_no_digest(runner: Runner, area: Path) -> None:
    (area / "file").write_bytes(content(2 * LEAF))
    plan = runner.prepare("checksum", path=area / "file", expect="00000000")
    plan.control.thread_func(0, LEAF)
    assert plan.finish(not_begun(plan)) == ""


def test_a_file_that_is_shorter_than_it_says(runner: Runner) -> None:
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    size, length = path.stat().st_size, len(path.read_bytes())
    assert size > length
    for operation in ("checksum", "compare"):
        with pytest.raises(TaskError) as caught:
            runner.run(operation, path=path, **({"source": path} if operation == "compare" else {}))
        assert isinstance(caught.value.error, TargetError)
        assert caught.value.error.errno == errno.ENXIO
        assert caught.value.error.message == f"{path} ends at {length}, before its size of {size} bytes"


def test_a_sparse_file_past_16_tib(runner: Runner, place: Place) -> None:
    path, size = place.directory / "file", 40 * TIB
    path.touch()
    os.truncate(path, size)
    last = size - HUGE
    subprocess.run(["fallocate", "-o", str(last), "-l", str(HUGE), str(path)], check=True)
    write_bytes(path, data := content(HUGE), last)
    for algorithm in ALGORITHMS:
        found = checksum(runner, path=path, algorithm=algorithm, offset=last - 4 * HUGE + 5)
        assert found == digest_of(bytes(4 * HUGE - 5) + data, algorithm)
    if place.unit == 4096:  # finding the holes of so much hugetlbfs takes a minute
        assert checksum(runner, path=path, chunk=TIB) == f"crc32 {zeros_then(last, data):08x}\n"
        checksum(runner, path=path, chunk=TIB, algorithm="sha256")


def test_zeros_are_digested_once(runner: Runner, area: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For any number of chunks: a hole of TiB takes as little time for a tree as for a CRC."""
    leaves, original = [], hashlib.sha256

    def counting(start: bytes) -> Any:
        leaves.append(len(start) > LEAF)
        return original(start)

    monkeypatch.setattr(hashlib, "sha256", counting)
    (area / "file").touch()
    os.truncate(area / "file", 1000 * LEAF)
    runner.run("checksum", path=area / "file", algorithm="sha256", chunk=LEAF)
    assert 1 <= leaves.count(True) <= 2  # each thread at most


def zeros_then(count: int, data: bytes) -> int:
    """The CRC of so many zeros and then ``data``, with polynomials modulo that of CRC-32, as zlib defines it."""

    def times(a: int, b: int) -> int:
        product = 0
        for bit in range(32):
            if a >> 31 - bit & 1:
                product ^= b
            b = b >> 1 ^ (0xEDB88320 if b & 1 else 0)
        return product

    def power_of_x(exponent: int) -> int:
        result, square = 1 << 31, 1 << 30
        while exponent:
            result = times(result, square) if exponent & 1 else result
            square, exponent = times(square, square), exponent >> 1
        return result

    state = times(0xFFFFFFFF, power_of_x(8 * count))
    return zlib.crc32(data, state ^ 0xFFFFFFFF)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_pieces_in_any_order(algorithm: str) -> None:
    """The results of several threads: any cut at leaves, any order, zeros given or counted, merged by twos."""
    rng = random.Random(7)
    for leaves in (1, 2, 3, 5, 8, 13):
        data = b"".join(bytes(LEAF) if rng.random() < 0.5 else rng.randbytes(LEAF) for _ in range(leaves))
        data = data[: len(data) - rng.choice((0, 0, 1, LEAF - 1))]
        starts = list(range(0, len(data), LEAF))
        rng.shuffle(starts)
        whole = digest_maker(algorithm)()
        for start in starts:
            piece, part = digest_maker(algorithm)(), data[start : start + LEAF]
            if any(part) or rng.random() < 0.5:
                piece.add(start, memoryview(part))
            else:
                piece.add_zeros(start, start + len(part))
            whole.merge(piece.to_bytes())
        assert whole.value() == digest_of(data, algorithm).split()[1]
