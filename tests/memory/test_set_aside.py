"""Reserved huge pages that were never touched return to the pool, at any end of the task."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ktaskfs.memory import set_aside
from ktaskfs.span import Node, Span
from tests.support.hugepages import smallest_pages
from tests.support.memory_files import allocated, write_bytes
from tests.support.runner import not_begun

if TYPE_CHECKING:
    from pathlib import Path

    from ktaskfs.operations.base.plan import Plan
    from tests.support.hugepages import TestPool
    from tests.support.runner import Runner

pytestmark = [smallest_pages, pytest.mark.usefixtures("root")]

PAGES = 12


@pytest.fixture
def file(hugetlbfs: Path) -> Path:
    return hugetlbfs / "file"


def end_early(plan: Plan, page: int, done: list[Span], begun: list[Span]) -> str:
    """Do these pages, touch ``begun`` as a chunk does that fails midway, and end the task; its result."""
    for span in [*done, *begun]:
        plan.control.thread_func(span.start * page, span.end * page)
    left = [Span(plan.nodes[0].start, plan.nodes[0].end)]
    for span in done:
        (each,) = (each for each in left if each.start <= span.start * page < each.end)
        left.remove(each)
        left += [Span(each.start, span.start * page), Span(span.end * page, each.end)]
    nodes = tuple(Node(each.start, each.size) for each in sorted(left) if each.size)
    return plan.finish(not_begun(plan)._replace(left=nodes, units_done=page))


def sized(path: Path, size: int) -> None:
    """A file that has its size and no page."""
    path.touch()
    os.truncate(path, size)


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize(
    ("done", "begun", "stays"),
    [
        ([], [], 0),
        ([Span(0, 4)], [], 4),
        ([Span(0, 4), Span(6, 12)], [], 10),
        ([Span(2, 4), Span(8, 9)], [], 3),
        ([Span(0, 4)], [Span(6, 8)], 6),
        ([Span(0, 4), Span(8, 9)], [Span(5, 6), Span(9, 10)], 7),
    ],
)
def test_what_was_not_done(
    runner: Runner,
    pool: TestPool,
    file: Path,
    existed: bool,
    done: list[Span],
    begun: list[Span],
    stays: int,
) -> None:
    page, reserved, free = pool.page_size, pool.reserved, pool.free
    if existed:
        sized(file, PAGES * page)
    plan = runner.prepare("fallocate", path=file, length=PAGES * page)
    assert pool.reserved == reserved + PAGES
    assert end_early(plan, page, done, begun) == ""
    assert (pool.reserved, pool.free) == (reserved, free - stays)
    assert (file.stat().st_size, allocated(file)) == (PAGES * page, stays * page)


def test_pages_of_others_stay(runner: Runner, pool: TestPool, file: Path) -> None:
    """Also those that a failed chunk has added: the kernel does not distinguish them."""
    page, reserved = pool.page_size, pool.reserved
    sized(file, PAGES * page)
    runner.run("fallocate", path=file, length=page)
    plan = runner.prepare("fallocate", path=file)
    assert end_early(plan, page, [Span(0, 4)], [Span(6, 8)]) == ""
    assert (pool.reserved, file.stat().st_size, allocated(file)) == (reserved, PAGES * page, 6 * page)


def test_pages_past_the_end_stay(runner: Runner, pool: TestPool, file: Path) -> None:
    """To cut the file would free them."""
    page, reserved = pool.page_size, pool.reserved
    runner.run("fallocate", path=file, length=2 * page, offset=14 * page, keep_size=1)
    plan = runner.prepare("fallocate", path=file, length=PAGES * page)
    assert end_early(plan, page, [Span(0, 4)], []) == ""
    assert (pool.reserved, file.stat().st_size, allocated(file)) == (reserved, PAGES * page, 6 * page)


def test_data_of_others_stays(runner: Runner, pool: TestPool, file: Path) -> None:
    page, reserved = pool.page_size, pool.reserved
    plan = runner.prepare("fallocate", path=file, length=PAGES * page)
    write_bytes(file, b"x" * page, 10 * page)
    assert end_early(plan, page, [Span(0, 4)], []) == ""
    assert pool.reserved == reserved
    with file.open("rb") as there:
        assert (file.stat().st_size, allocated(file)) == (PAGES * page, 5 * page)
        assert os.pread(there.fileno(), page, 10 * page) == b"x" * page


def test_nothing_is_taken_from_who_has_the_file_open(runner: Runner, pool: TestPool, file: Path) -> None:
    page, reserved = pool.page_size, pool.reserved
    plan = runner.prepare("fallocate", path=file, length=PAGES * page)
    with file.open("rb"):
        assert end_early(plan, page, [Span(0, 4)], []) == f"reserved {(PAGES - 4) * page}\n"
        assert pool.reserved == reserved + PAGES - 4
    assert file.stat().st_size == PAGES * page


def test_nothing_is_taken_from_a_memfd(runner: Runner, pool: TestPool) -> None:
    """Its first descriptor is not told."""
    page, reserved = pool.page_size, pool.reserved
    fd = os.memfd_create("kt", os.MFD_HUGETLB | page.bit_length() - 1 << os.MFD_HUGE_SHIFT)
    os.ftruncate(fd, PAGES * page)
    plan = runner.prepare("fallocate", path=f"/proc/{os.getpid()}/fd/{fd}")
    assert end_early(plan, page, [Span(0, 4)], []) == f"reserved {(PAGES - 4) * page}\n"
    os.close(fd)
    assert pool.reserved == reserved


def test_many_pages_between_others_stay_reserved(
    runner: Runner, pool: TestPool, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, reserved = pool.page_size, pool.reserved
    monkeypatch.setattr(set_aside, "SINGLY", 2 * page)
    plan = runner.prepare("fallocate", path=file, length=PAGES * page)
    assert end_early(plan, page, [Span(0, 4), Span(7, 8)], []) == f"reserved {3 * page}\n"
    assert pool.reserved == reserved + 3


def test_a_start_that_is_given_up(runner: Runner, pool: TestPool, file: Path) -> None:
    """Also of a file that had its size."""
    page, reserved = pool.page_size, pool.reserved
    sized(file, PAGES * page)
    runner.prepare("fallocate", path=file, length=4 * page, offset=2 * page).abort()
    assert (pool.reserved, file.stat().st_size, allocated(file)) == (reserved, PAGES * page, 0)
    runner.prepare("fallocate", path=file, length=(PAGES + 4) * page).abort()
    assert (pool.reserved, file.stat().st_size, allocated(file)) == (reserved, PAGES * page, 0)


def test_a_copy(runner: Runner, pool: TestPool, file: Path, area: Path) -> None:
    """Of a source with a hole, for which nothing is set aside."""
    page, reserved = pool.page_size, pool.reserved
    source = area / "source"
    with source.open("wb") as data:
        for start in (0, 8):
            data.seek(start * page)
            data.write(b"x" * 4 * page)
    plan = runner.prepare("copy", path=file, source=source)
    assert pool.reserved == reserved + 8
    assert end_early(plan, page, [Span(0, 1), Span(9, 10)], []) == ""
    assert (pool.reserved, allocated(file)) == (reserved, 2 * page)
    assert file.stat().st_size == PAGES * page
