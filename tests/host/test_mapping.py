from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host import mapping as mapping_module
from ktaskfs.host.mapped_range import MappedRange
from ktaskfs.host.mapping import HoleGuard, Mapping
from ktaskfs.host.presence import data_extents, hole_extents, missing_pages
from ktaskfs.host.syscalls import page_size
from tests.support import hugepages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ktaskfs.host.kernel import Kernel

PAGE = page_size()
HUGE = 2 << 20
TIB = 1 << 40


@contextlib.contextmanager
def memfd(size: int, flags: int = 0) -> Iterator[int]:
    fd = os.memfd_create("test", flags | os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def pool() -> Iterator[hugepages.TestPool]:
    with hugepages.reserved(HUGE, 8) as pool:
        yield pool


def test_the_kernel_copies_in_from_a_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 64)
    with memfd(4 * PAGE) as fd, source.open("rb") as file:
        with Mapping(fd, 0, 4 * PAGE, reserve=False) as mapping:
            assert mapping.readv_into(file.fileno(), 0, 0, 4 * PAGE) == 4 * PAGE
            assert mapping.readv_into(file.fileno(), 100, 0, PAGE) == PAGE
        assert os.pread(fd, 4 * PAGE, 0) == source.read_bytes()[100 : 100 + PAGE] + source.read_bytes()[PAGE:]


def test_a_source_that_ends_makes_it_short(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 10)
    with memfd(PAGE) as fd, source.open("rb") as file, Mapping(fd, 0, PAGE, reserve=False) as mapping:
        assert mapping.readv_into(file.fileno(), 0, 0, PAGE) == 10
        assert mapping.readv_into(file.fileno(), 10, 0, PAGE) == 0


def test_long_transfers_go_in_pieces(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
    monkeypatch.setattr(mapping_module, "RW_MAX", 1000)
    with memfd(4 * PAGE) as fd:
        os.pwrite(fd, b"x" * 4 * PAGE, 0)
        with Mapping(fd, 0, 4 * PAGE, reserve=False) as mapping:
            assert mapping.readv_into(kernel.zero, None, 1, 4 * PAGE - 2) == 4 * PAGE - 2
        assert os.pread(fd, 4 * PAGE, 0) == b"x" + bytes(4 * PAGE - 2) + b"x"


def test_a_truncated_file_is_an_error_and_not_the_end(kernel: Kernel) -> None:
    with memfd(4 * PAGE) as fd, Mapping(fd, 0, 4 * PAGE, reserve=False) as mapping:
        os.ftruncate(fd, 2 * PAGE)
        assert mapping.readv_into(kernel.zero, None, 0, 4 * PAGE) == 2 * PAGE
        for attempt in (
            lambda: mapping.readv_into(kernel.zero, None, 2 * PAGE, PAGE),
            lambda: mapping.populate_write(2 * PAGE, PAGE),
            lambda: mapping.populate_read(2 * PAGE, PAGE),
        ):
            with pytest.raises(OSError, match="Bad address|Bad file descriptor") as caught:
                attempt()
            assert caught.value.errno in (errno.EFAULT, errno.EBADF)


def test_a_guard_keeps_holes(kernel: Kernel) -> None:
    with memfd(8 * PAGE) as fd:
        os.pwrite(fd, b"x" * PAGE, 4 * PAGE)
        guard = HoleGuard()
        with Mapping(fd, 0, 8 * PAGE, reserve=False) as mapping:
            guard.guard(mapping)
            assert mapping.readv_into(kernel.zero, None, 4 * PAGE, 4 * PAGE) == PAGE
            with pytest.raises(OSError, match="Bad address"):
                mapping.readv_into(kernel.zero, None, 0, PAGE)
        guard.close()
        assert os.fstat(fd).st_blocks * 512 == PAGE
        assert list(data_extents(fd, 0, 8 * PAGE)) == [(4 * PAGE, 5 * PAGE)]
        assert list(hole_extents(fd, PAGE, 8 * PAGE)) == [(PAGE, 4 * PAGE), (5 * PAGE, 8 * PAGE)]
        assert list(data_extents(fd, 9 * PAGE, 12 * PAGE)) == []


def test_huge_pages_are_reserved_at_once_and_the_size_stays(pool: hugepages.TestPool) -> None:
    with memfd(0, os.MFD_HUGETLB) as fd:
        before = pool.available
        with Mapping(fd, 0, 4 * HUGE, reserve=True):
            assert pool.available == before - 4
        assert os.fstat(fd).st_size == 0
        with pytest.raises(OSError, match="Cannot allocate memory"):
            Mapping(fd, 0, (before + 1) * HUGE, reserve=True, extend=True)
        assert os.fstat(fd).st_size == 0
        with Mapping(fd, 0, 2 * HUGE, reserve=True, extend=True) as mapping:
            assert os.fstat(fd).st_size == 2 * HUGE
            mapping.populate_write(HUGE, HUGE)
        assert os.fstat(fd).st_blocks * 512 == HUGE
        with Mapping(fd, 0, HUGE, reserve=False, extend=True):
            assert os.fstat(fd).st_size == 2 * HUGE


def test_past_16_tib_of_sparse_file(pool: hugepages.TestPool, kernel: Kernel) -> None:
    size = 40 * TIB
    with memfd(size, os.MFD_HUGETLB) as fd:
        last = size - HUGE
        with Mapping(fd, last, HUGE, reserve=True) as mapping:
            mapping.populate_write(0, HUGE)
            assert mapping.readv_into(kernel.zero, None, 0, HUGE) == HUGE
        guard = HoleGuard()
        for start in (last - 4 * HUGE, 0):  # the second range is too long to be mapped whole
            pages = MappedRange(fd, start, size, HUGE, guard)
            assert list(missing_pages(pages, last - 2 * HUGE, size, HUGE)) == [(last - 2 * HUGE, last)]
            pages.close()
        guard.close()
        assert os.fstat(fd).st_blocks * 512 == HUGE


def test_missing_pages_come_in_runs(pool: hugepages.TestPool) -> None:
    with memfd(8 * HUGE, os.MFD_HUGETLB) as fd:
        for page in (1, 2, 5):
            subprocess.run(
                ["fallocate", "-o", str(page * HUGE), "-l", str(HUGE), f"/proc/{os.getpid()}/fd/{fd}"], check=True
            )
        guard = HoleGuard()
        pages = MappedRange(fd, 0, 8 * HUGE, HUGE, guard)
        runs = [(a // HUGE, b // HUGE) for a, b in missing_pages(pages, 0, 8 * HUGE, HUGE)]
        assert runs == [(0, 1), (3, 5), (6, 8)]
        pages.close()
        guard.close()
        assert os.fstat(fd).st_blocks * 512 == 3 * HUGE


def test_closing_twice_is_closing_once() -> None:
    with memfd(PAGE) as fd:
        mapping = Mapping(fd, 0, PAGE, reserve=False)
        mapping.close()
        mapping.close()
