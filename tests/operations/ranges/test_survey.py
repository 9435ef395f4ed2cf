from __future__ import annotations

import errno
import os
import random
import subprocess
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host import syscalls, userfaultfd
from ktaskfs.host.presence import HOLE
from ktaskfs.ktask import Job
from ktaskfs.memory.run_table import RunTable
from ktaskfs.span import Node
from tests.support.memory_files import allocated, dirty

if TYPE_CHECKING:
    from pathlib import Path

    from ktaskfs.operations.base.plan import Plan
    from tests.support.hugepages import TestPool
    from tests.support.runner import Place, Runner

HUGE = 2 << 20
TIB = 1 << 40
PAGE = 4096


def result_of(plan: Plan) -> tuple[dict[str, int], list[str]]:
    """Run a plan; its counts, and the rows of its table."""
    return parsed(plan.finish(Job(plan.nodes, plan.control).run()))


def parsed(text: str) -> tuple[dict[str, int], list[str]]:
    head, _, rows = text.partition("offset length pages node\n")
    return {key: int(value) for key, value in map(str.split, head.splitlines())}, rows.splitlines()


def survey(runner: Runner, **texts: object) -> tuple[dict[str, int], list[str]]:
    return result_of(runner.prepare("survey", **texts))


def punch(path: Path, start: int, length: int) -> None:
    subprocess.run(["fallocate", "-p", "-o", str(start), "-l", str(length), str(path)], check=True)


def test_what_is_there_and_what_is_not(runner: Runner, any_place: Place) -> None:
    unit = max(any_place.unit, HUGE)  # huge=always allocates so much at once
    path = any_place.directory / "file"
    path.touch()
    os.truncate(path, 3 * unit)
    subprocess.run(["fallocate", "-o", str(unit), "-l", str(unit), str(path)], check=True)
    if any_place.unit == PAGE:
        dirty(path, unit, 2 * unit)
    counts, rows = survey(runner, path=path)
    pages = unit // any_place.unit
    node = int(rows[1].split()[-1])
    assert rows == [
        f"0 {unit} {pages} hole",
        f"{unit} {unit} {pages} {node}",
        f"{2 * unit} {unit} {pages} hole",
    ]
    assert counts["pages"] == 3 * pages
    assert counts["holes"] == 2 * pages
    assert counts["present"] == counts[f"node{node}"] == counts["allocated"] == pages
    assert (counts["rows"], counts["left_out"]) == (3, 0)
    assert allocated(path) == unit, "a page was allocated"


def test_every_second_page(runner: Runner, place: Place) -> None:
    path, unit, pages = place.directory / "file", place.unit, 16 if place.unit > PAGE else 4096
    path.touch()
    os.truncate(path, pages * unit)
    dirty(path, 0, pages * unit)
    for page in range(1, pages, 2):
        punch(path, page * unit, unit)
    before = allocated(path)
    counts, rows = survey(runner, path=path, chunk=2)
    assert [row.split()[-1] == "hole" for row in rows] == [False, True] * (pages // 2)
    assert counts["present"] == pages // 2
    assert allocated(path) == before


def test_a_range_in_whole_pages(runner: Runner, place: Place) -> None:
    path, unit = place.directory / "file", place.unit
    path.touch()
    os.truncate(path, 4 * unit)
    _, rows = survey(runner, path=path, offset=unit + 1, length=unit)
    assert rows == [f"{unit} {2 * unit} 2 hole"]
    _, rows = survey(runner, path=path, offset=3 * unit)
    assert rows == [f"{3 * unit} {unit} 1 hole"]


def test_a_sparse_file_of_more_than_2_to_the_32_pages(runner: Runner, tmpfs: Path) -> None:
    path, size = tmpfs / "file", 33 * TIB
    path.touch()
    os.truncate(path, size)
    with path.open("rb+") as file:
        os.pwrite(file.fileno(), b"x", 16 * TIB + 5)
        os.pwrite(file.fileno(), b"x", size - 1)
    counts, rows = survey(runner, path=path)
    assert counts["pages"] == size // PAGE > 2**33
    assert counts["present"] == counts["allocated"] == allocated(path) // PAGE
    assert len(rows) == 4
    assert counts["holes"] == counts["pages"] - counts["present"]
    assert rows[1].startswith(f"{16 * TIB} ")


def test_a_sparse_file_of_huge_pages_past_16_tib(runner: Runner, pool: TestPool, hugetlbfs: Path) -> None:
    path, page = hugetlbfs / "file", pool.page_size
    size = (2**32 + 70000) * page
    path.touch()
    os.truncate(path, size)
    for offset in (0, size - page):
        subprocess.run(["fallocate", "-o", str(offset), "-l", str(page), str(path)], check=True)
    counts, rows = survey(runner, path=path, offset=size - 70000 * page)
    assert [row.split()[2] for row in rows] == ["69999", "1"]
    assert rows[1].split()[0] == str(size - page)
    counts, _ = survey(runner, path=path, length=70000 * page)
    assert (counts["present"], counts["holes"]) == (1, 69999)
    punch(path, size - page, page)
    counts, rows = survey(runner, path=path)  # the rest is known to be a hole once the only page is found
    assert (counts["present"], counts["pages"], len(rows)) == (1, size // page, 2)
    assert allocated(path) == page


def test_without_userfaultfd(runner: Runner, tmpfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmpfs / "file"
    path.write_bytes(b"x")

    def forbidden(features: int) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(userfaultfd, "create", forbidden)
    assert "userfaultfd" in runner.refused("survey", path=path).message


def expected_runs(nodes: list[int]) -> list[Node]:
    runs, position = [], 0
    for node, group in groupby(nodes):
        length = len(list(group))
        runs.append(Node(position, length, node))
        position += length
    return runs


@pytest.mark.parametrize("seed", range(50))
def test_pieces_in_any_order_make_the_same_table(seed: int) -> None:
    chance = random.Random(seed)
    nodes = [chance.choice([HOLE, 0, 1]) for _ in range(chance.randrange(1, 200))]
    cuts = sorted({0, len(nodes), *(chance.randrange(len(nodes)) for _ in range(chance.randrange(20)))})
    pieces = list(pairwise(cuts))
    chance.shuffle(pieces)
    most = chance.choice([1, 2, 5, 1000])
    table = RunTable(most)
    for start, end in pieces:
        table.add([Node(start + run.start, run.size, run.nid) for run in expected_runs(nodes[start:end])])
    runs, kept = expected_runs(nodes), list(table)
    assert table.rows == len(runs)
    assert table.seen == len(nodes)
    assert table.present == len(nodes) - nodes.count(HOLE)
    assert len(kept) <= most
    if len(runs) <= most:
        assert kept == runs or len(kept) < len(runs), "only rows that did not fit for a while may be missing"
    assert kept == runs[: len(kept)]


def test_a_row_whose_end_was_dropped_is_left_out() -> None:
    table = RunTable(2)
    table.add([Node(4, 1, 0), Node(5, 2, HOLE)])
    table.add([Node(0, 1, 1), Node(1, 1, 0)])
    table.add([Node(2, 2, 0)])
    assert (list(table), table.rows) == ([Node(0, 1, 1)], 3)


def test_a_table_that_does_not_fit_says_how_much_is_missing(runner: Runner, tmpfs: Path) -> None:
    path, pages = tmpfs / "file", 30000
    path.touch()
    os.truncate(path, pages * 2 * PAGE)
    with path.open("rb+") as file:
        for page in range(pages):
            os.pwrite(file.fileno(), b"x", 2 * page * PAGE)
        for page in range(pages):  # with huge pages the neighbours came along
            syscalls.punch_hole(file.fileno(), (2 * page + 1) * PAGE, (2 * page + 2) * PAGE)
    plan = runner.prepare("survey", path=path)
    text = plan.finish(Job(plan.nodes, plan.control).run())
    counts, rows = parsed(text)
    assert len(text) <= 1 << 20
    assert counts["rows"] == 2 * pages
    assert counts["left_out"] == 2 * pages - len(rows) > 0
    assert rows[1] == f"{PAGE} {PAGE} 1 hole"
