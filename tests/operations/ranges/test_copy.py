from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import stat
import subprocess
import zlib
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import OutOfHugePages, TargetError
from ktaskfs.host import syscalls
from ktaskfs.host.mapping import Mapping
from ktaskfs.ktask import NO_NODE
from ktaskfs.span import Node
from tests.operations.ranges.digests import digest_of
from tests.support import filesystems
from tests.support.as_caller import NOBODY, as_nobody
from tests.support.memory_files import HUGE, TIB, allocated, content, is_all, make_dirty, punch, same, write_bytes
from tests.support.resident import own_memory
from tests.support.runner import SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hugepages import TestPool
    from tests.support.runner import Place, Runner


@pytest.mark.parametrize("digest", [{}, {"digest": "crc32"}], ids=["", "crc32"])
def test_into_memory_and_out_again(runner: Runner, any_place: Place, plain: Path, digest: dict[str, str]) -> None:
    path, back = any_place.directory / "file", plain.with_name("back")
    before = os.listdir("/proc/self/fd")
    expected = f"crc32 {zlib.crc32(plain.read_bytes()):08x}\n" if digest else ""
    assert runner.result(runner.prepare("copy", source=plain, path=path, **digest)) == expected
    assert path.stat().st_size == -(-SIZE // any_place.unit) * any_place.unit
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert same(plain, path, SIZE)
    assert is_all(0, path, SIZE, path.stat().st_size)
    assert runner.result(runner.prepare("copy", source=path, path=back, length=SIZE, **digest)) == expected
    assert (back.stat().st_size, same(plain, back, SIZE)) == (SIZE, True)
    assert os.listdir("/proc/self/fd") == before


def test_between_files_of_memory(runner: Runner, place: Place) -> None:
    first, second = place.directory / "first", place.directory / "second"
    write_bytes(first, content(SIZE))
    runner.run("copy", source=first, path=second, mode="0640")
    assert same(first, second, SIZE)
    assert stat.S_IMODE(second.stat().st_mode) == 0o640
    write_bytes(first, content(SIZE, seed=2))
    runner.run("copy", source=first, path=second)  # over existing data
    assert same(first, second, SIZE)


@pytest.mark.parametrize("digest", [{}, {"digest": "crc32"}, {"digest": "sha256"}], ids=["", "crc32", "sha256"])
def test_a_part_to_an_odd_place(runner: Runner, place: Place, plain: Path, digest: dict[str, str]) -> None:
    path = place.directory / "file"
    make_dirty(path, 24 * HUGE)
    start, length = 2 * HUGE + 1234, 16 * HUGE + 777
    plan = runner.prepare("copy", source=plain, source_offset=999, path=path, offset=start, length=length, **digest)
    found = runner.result(plan)
    assert same(plain, path, length, (999, start))
    assert is_all(0xFF, path, 0, start)
    assert is_all(0xFF, path, start + length, 24 * HUGE)
    assert path.stat().st_size == 24 * HUGE
    if digest:
        assert found == digest_of(plain.read_bytes()[999 : 999 + length], digest["digest"])


def test_past_the_end_of_the_target(runner: Runner, place: Place, plain: Path) -> None:
    path = place.directory / "file"
    make_dirty(path, HUGE)
    runner.run("copy", source=plain, path=path, offset=3 * HUGE)
    assert path.stat().st_size == 3 * HUGE + SIZE
    assert allocated(path) == HUGE + SIZE
    assert is_all(0xFF, path, 0, HUGE)
    assert same(plain, path, SIZE, (0, 3 * HUGE))


def test_a_few_bytes(runner: Runner, place: Place, plain: Path) -> None:
    path = place.directory / "file"
    for length in (1, 4095, 4097):
        runner.run("copy", source=plain, path=path, length=length)
        assert same(plain, path, length)
    assert is_all(0, path, 4097, path.stat().st_size)


@pytest.mark.parametrize("digest", [{}, {"digest": "crc32"}, {"digest": "blake3"}], ids=["", "crc32", "blake3"])
def test_holes_stay_holes(runner: Runner, place: Place, area: Path, digest: dict[str, str]) -> None:
    first, second, third = place.directory / "first", place.directory / "second", area / "third"
    write_bytes(first, content(SIZE))
    holes = (0, 3, 4, 7, 17)
    for page in holes:
        punch(first, page * HUGE, HUGE)
    data = subprocess.run(["cat", str(first)], capture_output=True, check=True).stdout
    expected = digest_of(data, digest["digest"]) if digest else ""
    make_dirty(second, 12 * HUGE)  # holes of the source replace data of the target, too
    for source, path in ((first, second), (second, third)):
        assert runner.result(runner.prepare("copy", source=source, path=path, **digest)) == expected
        assert same(source, path, SIZE)
        assert (path.stat().st_size, allocated(path)) == (SIZE, SIZE - len(holes) * HUGE)
    runner.run("copy", source=first, path=second, sparse=0)
    assert (same(first, second, SIZE), allocated(second)) == (True, SIZE)


def test_a_hole_of_a_plain_file_that_is_no_whole_page(runner: Runner, place: Place, plain: Path) -> None:
    punch(plain, HUGE + 4096, 3 * HUGE)
    path = place.directory / "file"
    make_dirty(path, SIZE)
    runner.run("copy", source=plain, path=path)
    assert same(plain, path, SIZE)
    assert allocated(path) == SIZE - (2 * HUGE if place.unit > 4096 else 3 * HUGE)


@pytest.mark.parametrize("huge", ["never", "always"])
def test_a_hole_where_somebody_wrote_past_the_end(runner: Runner, area: Path, plain: Path, huge: str) -> None:
    """tmpfs keeps bytes that a mapping writes past the file's end in its last page, and shows them when it grows."""
    punch(plain, 0, 2 * HUGE)
    with filesystems.tmpfs(area / "dirty", 2 * SIZE, f"huge={huge}") as tmpfs:
        path = tmpfs / "file"
        path.write_bytes(b"y" * 4096)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as mapped:
            os.truncate(path, 100)
            mapped[100:200] = b"x" * 100
        crc = f"crc32 {zlib.crc32(plain.read_bytes()):08x}\n"
        assert runner.result(runner.prepare("copy", source=plain, path=path, digest="crc32")) == crc
        assert same(plain, path, SIZE)


def test_holes_where_the_kernel_frees_whole_pages_only(
    runner: Runner, place: Place, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hugetlbfs before Linux 6.0; missing pages at the edges of the range must not be created."""
    original, unit = syscalls.punch_hole, place.unit

    def old(fd: int, start: int, end: int) -> None:
        first, last = -(-start // unit) * unit, end // unit * unit
        if first < last:
            original(fd, first, last)

    monkeypatch.setattr(syscalls, "punch_hole", old)
    path, empty, offset = place.directory / "file", place.directory / "empty", HUGE // 2
    punch(plain, 0, 3 * HUGE + 4096)
    punch(plain, 5 * HUGE - 4096, 8192)
    make_dirty(path, SIZE + HUGE)
    found = runner.result(runner.prepare("copy", source=plain, path=path, offset=offset, digest="sha256"))
    assert found == digest_of(plain.read_bytes(), "sha256")
    assert same(plain, path, SIZE, (0, offset))
    assert is_all(0xFF, path, 0, offset)
    assert is_all(0xFF, path, offset + SIZE, SIZE + HUGE)
    empty.touch()
    os.truncate(empty, SIZE + HUGE)
    runner.run("copy", source=plain, path=empty, offset=offset, length=3 * HUGE)
    assert allocated(empty) == 0


def test_holes_of_a_source_that_the_caller_cannot_write(runner: Runner, place: Place) -> None:
    write_bytes(place.directory / "first", bytes(2 * HUGE) + content(HUGE))
    punch(place.directory / "first", 0, 2 * HUGE)
    (place.directory / "first").chmod(0o644)

    def work() -> None:
        runner.run("copy", source="/first", path="/second")

    as_nobody(place.directory, work)
    assert same(place.directory / "first", place.directory / "second", 3 * HUGE)
    assert allocated(place.directory / "first") == HUGE


def test_only_the_data_is_reserved(runner: Runner, pool: TestPool, hugetlbfs: Path, area: Path) -> None:
    path = hugetlbfs / "file"
    with filesystems.tmpfs(area / "tmpfs", HUGE) as tmpfs:
        source = tmpfs / "sparse"
        source.touch()
        os.truncate(source, 40 * TIB)
        write_bytes(source, b"x" * 4096, 17 * TIB)
        free = pool.available
        plan = runner.prepare("copy", source=source, path=path, chunk=TIB)
        assert pool.available == free - 1
        plan.abort()
        assert (pool.available, path.exists()) == (free, False)
        runner.work(runner.prepare("copy", source=source, path=path, offset=0, length=40 * TIB, chunk=TIB))
        assert (path.stat().st_size, allocated(path)) == (40 * TIB, pool.page_size)
        assert same(source, path, 1 << 20, (17 * TIB, 17 * TIB))


def test_a_whole_pool(runner: Runner, pool: TestPool, hugetlbfs: Path, area: Path) -> None:
    path, free, reserved = hugetlbfs / "file", pool.available, pool.reserved
    source = area / "source"
    source.touch()
    os.truncate(source, free * pool.page_size)
    runner.run("copy", source=source, path=path, sparse=0)
    assert (pool.available, pool.reserved, allocated(path)) == (0, reserved, free * pool.page_size)
    path.unlink()
    os.truncate(source, free * pool.page_size + 1)
    assert isinstance(runner.refused("copy", source=source, path=path, sparse=0), OutOfHugePages)
    assert os.listdir(hugetlbfs) == []
    path.touch()
    os.truncate(path, pool.page_size)
    assert isinstance(runner.refused("copy", source=source, path=path, sparse=0), OutOfHugePages)
    assert path.stat().st_size == pool.page_size
    assert pool.available == free


@pytest.mark.parametrize("promised", [False, True])
def test_two_runs_of_data_for_a_file_that_has_its_size(
    runner: Runner, pool: TestPool, hugetlbfs: Path, area: Path, promised: bool
) -> None:
    """Each run of data alone would fit. While the file exists, nobody could release the reservation of the first."""
    page = pool.page_size
    half = pool.available // 2 * page
    data = b"x" * min(page, 64 << 20)  # any data in a gigantic page needs the whole page
    source, path = area / "source", hugetlbfs / "file"
    length = 2 * half + page
    with source.open("wb") as file:
        for start in (*range(0, half, page), *range(half + page, length, page)):
            file.seek(start)
            file.write(data)
    os.truncate(source, length)
    path.touch()
    os.truncate(path, length)
    if promised:
        with path.open("r+b") as file:
            for start in (0, half + page):
                Mapping(file.fileno(), start, half, reserve=True).close()
    else:
        more = pool.available - 2 * half // page + 1  # than there are
        with source.open("r+b") as file:
            for position in range(length, length + more * page, page):
                file.seek(position)
                file.write(data)
        for each in (source, path):
            os.truncate(each, length + more * page)
    before = pool.free, pool.reserved
    if promised:
        runner.run("copy", source=source, path=path)
        assert same(source, path, length)
    else:
        assert isinstance(runner.refused("copy", source=source, path=path), OutOfHugePages)
        assert (pool.free, pool.reserved) == before


def test_a_rest_ends_where_it_did(runner: Runner, any_place: Place, plain: Path) -> None:
    """After any change of the source; without a length in the spec, a rest has the length of the first run."""
    path = any_place.directory / "file"
    rest = [Node(4 * HUGE, SIZE - 4 * HUGE, NO_NODE)]
    os.truncate(plain, SIZE + HUGE)
    runner.work(runner.prepare("copy", rest, source=plain, path=path, length=SIZE))
    assert path.stat().st_size == -(-SIZE // any_place.unit) * any_place.unit
    assert same(plain, path, SIZE - 4 * HUGE, (4 * HUGE, 4 * HUGE))
    os.truncate(plain, SIZE - 1)
    error = runner.refused("copy", rest, source=plain, path=path, length=SIZE)
    assert (error.errno, "was truncated" in error.message) == (errno.ENXIO, True)


@pytest.mark.parametrize("size", [4096, 5 * HUGE, 5 * HUGE + 1234])
@pytest.mark.parametrize("digest", [{}, {"digest": "crc32"}], ids=["", "crc32"])
def test_past_the_page_cache(
    runner: Runner, place: Place, area: Path, size: int, digest: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = area / "source", place.directory / "file"
    source.write_bytes(data := content(size))
    found = runner.result(runner.prepare("copy", source=source, path=path, direct=1, **digest))
    assert same(source, path, size)
    assert found == (f"crc32 {zlib.crc32(data):08x}\n" if digest else "")
    direct: list[bool] = []
    original = os.preadv

    def watched(fd: int, buffers: list[memoryview], offset: int) -> int:
        direct.append(bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT))
        return original(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", watched)
    runner.run("copy", source=source, path=path, direct=1)
    assert direct.count(False) == (1 if size % 4096 else 0)
    assert direct.count(True) > 0


def test_what_an_earlier_run_left(runner: Runner, place: Place, plain: Path) -> None:
    path = place.directory / "file"
    make_dirty(path, SIZE)
    runner.run("copy", [Node(6 * HUGE, SIZE - 6 * HUGE, -1)], source=plain, path=path)
    assert is_all(0xFF, path, 0, 6 * HUGE)
    assert same(plain, path, SIZE - 6 * HUGE, (6 * HUGE, 6 * HUGE))


def test_pages_are_put_in_without_the_lock_of_write(
    runner: Runner, area: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the buffer too, which a digest needs."""
    with filesystems.tmpfs(area / "tmpfs", 2 * SIZE, "huge=never") as tmpfs:
        plan = runner.prepare("copy", source=plain, path=tmpfs / "file", digest="crc32")
        with monkeypatch.context() as patch:
            patch.delattr(os, "pwrite")
            runner.work(plan)
        assert same(plain, tmpfs / "file", SIZE)


@pytest.mark.parametrize("flags", [0, os.MFD_HUGETLB])
def test_into_a_memfd_and_out_of_a_sealed_one(runner: Runner, pool_2m: TestPool, plain: Path, flags: int) -> None:
    fd = os.memfd_create("guest", flags | os.MFD_ALLOW_SEALING)
    path = f"/proc/{os.getpid()}/fd/{fd}"
    runner.run("copy", source=plain, path=path)
    assert same(plain, path, SIZE)
    syscalls.punch_hole(fd, HUGE, 2 * HUGE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    runner.run("copy", source=path, path=plain.with_name("out"))
    assert same(path, plain.with_name("out"), SIZE)
    os.close(fd)


@pytest.mark.parametrize("far", [16 * TIB, 1 << 61])
def test_positions_beyond_32_bits_of_pages(runner: Runner, place: Place, plain: Path, far: int) -> None:
    path, other = place.directory / "file", place.directory / "other"
    offset = far + HUGE + 4096
    runner.run("copy", source=plain, path=path, offset=offset, length=2 * HUGE + 1)
    assert same(plain, path, 2 * HUGE + 1, (0, offset))
    runner.run("copy", source=path, source_offset=offset, path=other, length=HUGE + 17, digest="crc32")
    assert same(plain, other, HUGE + 17)


def test_as_an_ordinary_user(runner: Runner, place: Place) -> None:
    """In a root without /proc, with little memory, and with the limit on the size of files."""
    write_bytes(place.directory / "source", content(SIZE))
    (place.directory / "source").chmod(0o644)

    def work() -> list[object]:
        before = own_memory(runner.kernel.read_proc("self/smaps_rollup"))
        found: list[object] = [os.path.exists("/proc")]
        result = runner.result(runner.prepare("copy", source="/source", path="/copy", digest="crc32"))
        grown = own_memory(runner.kernel.read_proc("self/smaps_rollup")) - before
        resource.setrlimit(resource.RLIMIT_FSIZE, (HUGE, HUGE))
        with pytest.raises(TargetError) as limited:
            runner.prepare("copy", source="/source", path="/more")
        return [*found, result, limited.value.errno, grown < 12 << 20, os.path.exists("/more")]

    expected = f"crc32 {zlib.crc32(content(SIZE)):08x}\n"
    found = as_nobody(place.directory, work)
    assert found == [False, expected, errno.EFBIG, True, False]
    assert (place.directory / "copy").stat().st_uid == NOBODY
    assert same(place.directory / "source", place.directory / "copy", SIZE)
