from __future__ import annotations

import os
import random
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host.mapped_range import REGION_PAGES, MappedRange
from ktaskfs.host.mapping import HoleGuard
from ktaskfs.host.syscalls import page_size
from tests.host.test_mapping import memfd
from tests.support.forked import run_forked

if TYPE_CHECKING:
    from ktaskfs.host.mapping import Mapping

PAGE = page_size()
REGION = REGION_PAGES * PAGE


def mapped(fd: int) -> list[tuple[int, int]]:
    """The ranges of the file that this process has mapped, as the kernel lists them: offset and length."""
    inode = os.fstat(fd).st_ino
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high, _, offset, _, number = line.replace("-", " ", 1).split()[:6]
        if int(number) == inode and "memfd" in line:
            found.append((int(offset, 16), int(high, 16) - int(low, 16)))
    return sorted(found)


def at(mapping: Mapping) -> tuple[int, int]:
    return mapping.offset, mapping.length


def test_one_mapping_for_all() -> None:
    with memfd(8 * PAGE) as fd:
        pages = MappedRange(fd, PAGE, 8 * PAGE, PAGE, None)
        with pages.window(PAGE, 2 * PAGE) as first, pages.window(5 * PAGE, 8 * PAGE) as second:
            assert first is second
            assert mapped(fd) == [(PAGE, 7 * PAGE)]
        pages.close()
        assert mapped(fd) == []


def test_a_long_range_is_mapped_where_somebody_is_at_work() -> None:
    with memfd(4 * REGION) as fd:
        pages = MappedRange(fd, PAGE, 4 * REGION, PAGE, None)
        with pages.window(PAGE, REGION) as early:
            with pages.window(2 * REGION, 2 * REGION + 1) as late:
                assert (at(early), at(late)) == ((PAGE, REGION), (PAGE + REGION, REGION))
                assert mapped(fd) == [(PAGE, REGION), (PAGE + REGION, REGION)]
            with pages.window(4 * REGION - PAGE, 4 * REGION) as last:
                assert at(last) == (3 * REGION + PAGE, REGION - PAGE)
                assert mapped(fd) == [(PAGE, REGION), (3 * REGION + PAGE, REGION - PAGE)], "who has left is unmapped"
            last.populate_write(0, PAGE)
        with pages.window(REGION, REGION + 2 * PAGE) as over_the_edge:
            assert at(over_the_edge) == (REGION, 2 * PAGE)
        assert len(mapped(fd)) == 2
        pages.close()
        assert mapped(fd) == []


def test_threads_that_change_regions_at_once() -> None:
    """To have another's region unmapped is ENOMEM for him, or a page at the wrong place."""
    threads, visits, regions, size = 8, 100, 12, 64 * PAGE
    together = threading.Barrier(threads)

    def wander(number: int) -> int:
        choice = random.Random(number)
        entered = 0
        together.wait()
        for visit in range(visits):
            position = choice.randrange(regions) * REGION + (visit * threads + number) * size
            with pages.window(position, position + size) as mapping:
                mapping.populate_write(position - mapping.offset, size)
            assert os.lseek(fd, position, os.SEEK_DATA) == position
            entered += 1
        return entered

    with memfd(regions * REGION) as fd:
        pages = MappedRange(fd, 0, regions * REGION, PAGE, None)
        with ThreadPoolExecutor(threads) as pool:
            assert sum(pool.map(wander, range(threads))) == threads * visits
        assert os.fstat(fd).st_blocks * 512 == threads * visits * size
        assert len(mapped(fd)) <= threads
        pages.close()
        assert mapped(fd) == []


def test_a_range_that_cannot_be_mapped() -> None:
    read, write = os.pipe()
    with pytest.raises(OSError, match="No such device"):
        MappedRange(read, 0, PAGE, PAGE, None)
    os.close(read)
    os.close(write)


def test_past_the_end_a_window_has_a_mapping_of_its_own() -> None:
    with memfd(8 * PAGE) as fd:
        pages = MappedRange(fd, 0, 4 * PAGE, PAGE, None)
        with pages.window(3 * PAGE, 6 * PAGE) as mapping:
            assert at(mapping) == (3 * PAGE, 3 * PAGE)
        pages.close()


def test_a_window_over_the_edge_is_guarded_too() -> None:
    with memfd(2 * REGION) as fd:
        guard = HoleGuard()
        pages = MappedRange(fd, 0, 2 * REGION, PAGE, guard)
        for start, end in ((0, PAGE), (REGION - PAGE, REGION + PAGE), (2 * REGION - PAGE, 2 * REGION)):
            with pages.window(start, end) as mapping, pytest.raises(OSError, match="Bad address"):
                mapping.populate_read(start - mapping.offset, end - start)
        assert os.fstat(fd).st_blocks == 0
        pages.close()
        guard.close()


def test_where_there_are_few_addresses() -> None:
    def work() -> tuple[int, int]:
        with memfd(2 * REGION) as fd:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
            resource.setrlimit(resource.RLIMIT_AS, (used + REGION // 4, resource.RLIM_INFINITY))
            pages = MappedRange(fd, 0, 2 * REGION, PAGE, None)
            with pages.window(PAGE, 3 * PAGE) as mapping:
                found = at(mapping)
            pages.close()
            return found

    assert run_forked(work) == [PAGE, 2 * PAGE]
