from __future__ import annotations

import errno
import mmap
import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import NotSupported
from ktaskfs.host import page_cache, syscalls
from ktaskfs.host.cgroups import Group
from ktaskfs.host.group_limits import Headroom
from ktaskfs.host.mapping import Mapping
from ktaskfs.host.transparent import bytes_in_huge_pages
from ktaskfs.operations.trees import prefetch
from ktaskfs.operations.trees._files import COST
from ktaskfs.span import Node, Span
from ktaskfs.units import human_size
from tests.operations.trees.ground import SIZE, as_nobody, cached, make, parsed, result_of
from tests.support.filesystems import disk_image
from tests.support.filesystems import hugetlbfs as hugetlbfs_on
from tests.support.filesystems import tmpfs as tmpfs_on
from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Mount
    from tests.support.hugepages import TestPool
    from tests.support.runner import Runner

MIB = 1 << 20
READ_AHEAD = 16 * MIB
"""More than the kernel's readahead."""
NOTHING_ELSE = {"not_kept": 0, "skipped": 0, "mounts": 0}


def missing(*arguments: object) -> None:
    """Stands for a system call that the kernel does not have."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def cold(runner: Runner, path: Path) -> None:
    runner.run("evict", path=path)


def large(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


@pytest.mark.parametrize("touch", [0, 1])
def test_cold_files_are_warm_afterwards(runner: Runner, disk: Path, touch: int) -> None:
    files = [make(disk / f"d{number % 3}/f{number}") for number in range(20)]
    files += [make(disk / "bad\udcff name\n"), large(disk / "large", 35 * MIB + 5)]
    (disk / "empty").touch()
    size = 21 * SIZE + 35 * MIB + 5
    cold(runner, disk)
    assert sum(map(cached, files)) == 0
    plan = runner.prepare("prefetch", path=disk, touch=touch)
    assert sum(node.size for node in plan.nodes) == size + 23 * COST
    result = parsed(runner.result(plan))
    assert result["cached"] <= (0 if touch else 23 * READ_AHEAD), "what the kernel has begun to read ahead"
    assert result["cached"] + result["read"] == size
    assert result | {"cached": 0, "read": 0} == {"files": 23, "bytes": size, "cached": 0, "read": 0} | NOTHING_ELSE
    until(lambda: all(cached(file) >= file.stat().st_size for file in files), "all to be there")


@pytest.mark.parametrize("older", [False, True], ids=["cachestat", "mincore"])
def test_what_is_there_is_not_read_again(
    runner: Runner, disk: Path, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    if older:
        monkeypatch.setattr(page_cache, "_cachestat", missing)
    file = large(disk / "file", 8 * MIB)
    cold(runner, disk)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        mapping.madvise(mmap.MADV_RANDOM)
        for position in range(3 * MIB, 5 * MIB, 4096):
            assert mapping[position] in range(256)
        result = result_of(runner.prepare("prefetch", path=disk, chunk="16M"))
    assert (result["cached"], result["read"]) == (2 * MIB, 6 * MIB)
    result = result_of(runner.prepare("prefetch", path=disk))
    assert (result["cached"], result["read"]) == (8 * MIB, 0)


def test_without_room_to_look_all_is_read(runner: Runner, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon may have a limit of addresses (RLIMIT_AS), and a chunk the size of a large file."""

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(page_cache, "_cachestat", missing)
    monkeypatch.setattr(page_cache, "_resident", full)
    file = large(disk / "file", 4 * MIB)
    result = result_of(runner.prepare("prefetch", path=file))
    assert (result["cached"], result["read"]) == (0, 4 * MIB)


def in_huge_pages(runner: Runner, path: Path) -> int:
    """Bytes of a cached file that a program gets in huge pages if it maps the file."""
    size = path.stat().st_size
    with path.open("rb") as file, Mapping(file.fileno(), 0, size, reserve=False, private=True) as mapping:
        mapping.populate_read(0, size)
        return bytes_in_huge_pages(runner.kernel, mapping.address, mapping.address + size)


def test_large_files_come_in_huge_pages(runner: Runner, disk: Path) -> None:
    with disk_image(disk, "mkfs.xfs") as other:
        file = large(other / "file", 32 * MIB)
        cold(runner, other)
        result = result_of(runner.prepare("prefetch", path=file, chunk="5M"))
        assert result["cached"] + result["read"] == 32 * MIB
        until(lambda: cached(file) == 32 * MIB, "the whole file to be there")
        # Not all: without a free huge page the kernel reads into small ones.
        assert in_huge_pages(runner, file) >= 8 * MIB


@pytest.mark.parametrize("touch", [0, 1])
def test_what_the_filesystem_does_not_keep_is_said(runner: Runner, mounted: Mount, touch: int) -> None:
    """Files of ktaskfs are opened with direct_io, and without keep_cache: sendfile(2) reads into the cache even so."""
    file = mounted.path / "README"
    result = result_of(runner.prepare("prefetch", path=file, touch=touch))
    assert result["files"] == 1
    assert result["not_kept"] == result["read"] > 0


@pytest.mark.parametrize(("name", "value"), [("release", (5, 15)), ("page_size", 512)])
def test_where_a_fault_reads_a_small_page_only(
    runner: Runner, disk: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    """Before Linux 5.18, and where a huge page is larger than what the page cache can have in one piece."""

    def never(*arguments: object) -> None:
        raise AssertionError("read by page faults")

    monkeypatch.setattr(prefetch, "read_in_huge_pages", never)
    file = large(disk / "file", 4 * MIB)
    cold(runner, disk)
    with monkeypatch.context() as patch:
        patch.setattr(syscalls, name, lambda: value)
        plan = runner.prepare("prefetch", path=file)
    result = result_of(plan)
    assert result["cached"] + result["read"] == 4 * MIB
    until(lambda: cached(file) == 4 * MIB, "the whole file to be there")


def test_a_filesystem_without_mappings(runner: Runner, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(prefetch, "read_in_huge_pages", refused)
    file = large(disk / "file", 8 * MIB)
    cold(runner, disk)
    result = result_of(runner.prepare("prefetch", path=disk))
    assert result["cached"] + result["read"] == 8 * MIB
    until(lambda: cached(file) == 8 * MIB, "the whole file to be there")


def test_a_large_file_that_shrinks(runner: Runner, disk: Path) -> None:
    file = large(disk / "file", 12 * MIB)
    cold(runner, disk)
    plan = runner.prepare("prefetch", path=disk, chunk="16M")
    os.truncate(file, 5 * MIB + 1)
    result = result_of(plan)
    assert (result["files"], result["skipped"]) == (1, 0)
    assert result["read"] <= 5 * MIB + 1
    # truncate(2) zeroes the rest of the last page: ext4 has it in the cache then, but not as one that is up to date.
    until(lambda: cached(file) in (5 * MIB, 5 * MIB + mmap.PAGESIZE), "the whole file to be there")


def test_a_large_file_that_shrinks_at_the_last_moment(
    runner: Runner, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, look = large(disk / "file", 12 * MIB), prefetch._look_at

    def look_and_shorten(fd: int, extent: Span, *, overlay: bool) -> tuple[int, list[Span]]:
        answer = look(fd, extent, overlay=overlay)
        os.truncate(file, 5 * MIB)
        return answer

    monkeypatch.setattr(prefetch, "_look_at", look_and_shorten)
    cold(runner, disk)
    assert result_of(runner.prepare("prefetch", path=disk, chunk="16M"))["read"] == 5 * MIB


@pytest.fixture
def holes_of_memory(disk: Path, root: None) -> Iterator[Path]:
    """A directory with a tmpfs in it, and there a file that has data and holes in each huge page at an edge."""
    (disk / "tree/memory").mkdir(parents=True)
    with tmpfs_on(disk / "tree/memory", 64 * MIB) as memory:
        file = memory / "sparse"
        with file.open("wb") as opened:
            for position in (MIB, 11 * MIB):
                opened.seek(position)
                opened.write(os.urandom(4 * MIB))
            opened.truncate(24 * MIB)
        yield disk / "tree"


def test_a_reader_of_memory_allocates_none(runner: Runner, holes_of_memory: Path) -> None:
    """The kernel does not tell another user what the cache has, so all data is read."""
    before = (holes_of_memory / "memory/sparse").stat().st_blocks
    result = as_nobody(lambda: result_of(runner.prepare("prefetch", path=holes_of_memory, cross_mounts=1)))
    assert (result["files"], result["read"]) == (1, 8 * MIB)
    assert (holes_of_memory / "memory/sparse").stat().st_blocks == before


@pytest.mark.parametrize("operation", ["prefetch", "evict", "survey"])
def test_huge_pages_of_a_pool_are_left_alone(
    runner: Runner, disk: Path, pool_2m: TestPool, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """A kernel without cachestat(2) would look through a mapping, which reserves the pages that the file lacks."""

    make(disk / "tree/file")
    (disk / "tree/pool").mkdir()
    before = pool_2m.reserved
    with hugetlbfs_on(disk / "tree/pool", 2 * MIB) as memory:
        (memory / "empty").touch()
        os.truncate(memory / "empty", 8 * MIB)
        for each in (False, True):
            if each:
                monkeypatch.setattr(page_cache, "_cachestat", missing)
            result = runner.result(runner.prepare(operation, path=disk / "tree", cross_mounts=1))
            assert "\nskipped_EOPNOTSUPP 1\n" in result
            assert ((memory / "empty").stat().st_blocks, pool_2m.reserved) == (0, before)


def test_holes_take_no_memory(runner: Runner, disk: Path) -> None:
    file = disk / "sparse"
    with file.open("wb") as opened:
        opened.seek(64 * MIB)
        opened.write(os.urandom(MIB))
        opened.truncate(1 << 30)
    cold(runner, disk)
    result = result_of(runner.prepare("prefetch", path=file))
    assert (result["bytes"], result["read"]) == (1 << 30, MIB)
    assert MIB <= cached(file) <= MIB + READ_AHEAD


def test_a_tree_larger_than_the_memory(runner: Runner, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = disk / "large"
    file.touch()
    available = runner.kernel.available_memory(swap=False)
    os.truncate(file, 2 * available)
    refused = runner.refused("prefetch", path=disk)
    assert refused.errno == errno.ENOMEM
    words = re.escape(f"{disk} has {human_size(2 * available)}, and ")
    assert re.fullmatch(rf"{words}\S+iB are available: force=1 reads it anyway", refused.message)
    runner.prepare("prefetch", path=disk, force=1).abort()
    os.truncate(file, MIB)
    limit = Headroom(Group("memory", "/a"), "memory.max", 2 * MIB, MIB + 1)
    monkeypatch.setattr(prefetch, "memory_headroom", lambda kernel: limit)
    refused = runner.refused("prefetch", path=disk)
    words = "your control group memory:/a has 1048575 left: memory.max is 2.0MiB, 1.0MiB in use"
    assert refused.message == f"{disk} has 1M, and {words}: force=1 reads it anyway"


def test_files_that_go_shrink_or_grow(runner: Runner, disk: Path) -> None:
    files = [make(disk / f"f{number}") for number in range(4)]
    cold(runner, disk)
    plan = runner.prepare("prefetch", path=disk)
    files[0].unlink()
    os.truncate(files[1], 10)
    with files[2].open("ab") as grown:
        grown.write(bytes(SIZE))
    files[3].unlink()
    os.mkfifo(files[3])
    result = result_of(plan)
    assert (result["files"], result["skipped_gone"], result["skipped_EINVAL"]) == (2, 1, 1)
    assert result["read"] <= SIZE + 10


def test_a_directory_of_links(runner: Runner, disk: Path) -> None:
    blob = make(disk / "blobs/0")
    (disk / "shown").mkdir()
    (disk / "shown/model").symlink_to("../blobs/0")
    cold(runner, disk)
    assert result_of(runner.prepare("prefetch", path=disk / "shown"))["files"] == 0
    assert result_of(runner.prepare("prefetch", path=disk / "shown", links=1))["read"] == SIZE
    assert cached(blob) == SIZE


def test_other_mounts(runner: Runner, disk: Path, root: None) -> None:
    make(disk / "other/beyond")
    (disk / "tree/mounted").mkdir(parents=True)
    cold(runner, disk)
    subprocess.run(["mount", "--bind", disk / "other", disk / "tree/mounted"], check=True)
    try:
        apart = result_of(runner.prepare("prefetch", path=disk / "tree"))
        across = result_of(runner.prepare("prefetch", path=disk / "tree", cross_mounts=1))
    finally:
        subprocess.run(["umount", disk / "tree/mounted"], check=True)
    assert (apart["files"], apart["mounts"]) == (0, 1)
    assert (across["files"], across["read"]) == (1, SIZE)


def test_another_user_reads_what_the_user_may(runner: Runner, disk: Path, root: None) -> None:
    """The kernel does not report the cached pages of another user's file, so it is read."""
    make(disk / "closed").chmod(0o600)
    make(disk / "open").chmod(0o644)
    result = as_nobody(lambda: result_of(runner.prepare("prefetch", path=disk)))
    assert (result["files"], result["skipped_EACCES"], result["read"]) == (1, 1, SIZE)


def test_the_rest_alone(runner: Runner, disk: Path) -> None:
    file = large(disk / "file", 16 * MIB)
    cold(runner, disk)
    rest = [Node(8 * MIB, 8 * MIB + COST, -1)]
    assert result_of(runner.prepare("prefetch", rest, path=disk, chunk="16M"))["read"] == 8 * MIB
    until(lambda: cached(file) == 8 * MIB, "half of it")


def test_files_of_memory_are_refused(runner: Runner, tmpfs: Path) -> None:
    assert isinstance(runner.refused("prefetch", path=tmpfs), NotSupported)
