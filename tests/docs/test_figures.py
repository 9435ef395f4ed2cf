"""Figures that a page takes from a benchmark are those of bench/results."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from bench.report import shown
from bench.summary import Results
from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from bench.report import Section

DECISIONS = "explanation/decisions.md"
PLACE = "Open, read, close, the filesystem kept on the same CPU, no busy tasks: median of 500"
BARE = "minimal filesystem, pyfuse3"


def sections(benchmark: str) -> tuple[Section, ...]:
    return Results.read(ROOT / f"bench/results/{benchmark}.json").sections


def medians(benchmark: str, title: str) -> dict[str, float]:
    """The median of each contender in one section, by its name."""
    (found,) = [each for each in sections(benchmark) if each.title == title]
    return {each.name: each.median for each in found.series}


def text(page: str) -> str:
    """A page in one line."""
    return re.sub(r"\s+", " ", (ROOT / "docs" / page).read_text())


def test_the_requests_of_a_read() -> None:
    times = medians("reads", PLACE)
    sizes, same = times[f"{BARE}, exact sizes and close(2)"], times[f"{BARE}, the same requests"]
    page = text(DECISIONS)
    assert f"some {times[BARE] / 3 * 1e6:.0f} µs on the reader's CPU" in page
    assert f"takes {sizes / times[BARE]:.1f} times as long as one without" in page
    assert f"the same seven requests {same / times[BARE]:.1f} times" in page
    files = ("`state`, ended", "`progress`, ended", "`progress`, running", "`status`, ended")
    state, progress, running, status = (f"{times[f'ktaskfs, {each}'] / same:.2f}" for each in files)
    words = (
        f"takes {state} times as long as that for `state`, {progress} for `progress` ({running} while the task runs)"
    )
    assert f"{words} and {status} for `status`" in page


def test_the_speed_of_hands() -> None:
    times = medians("main_job", "`clear`, 4.0GiB of 2 MiB pages, 2 threads")
    contenders = ("ktaskfs", "C, memset, 2 threads", "C, read(2) from /dev/zero, 2 threads")
    hands, memset, kernel = (f"{4 / times[each]:.1f}" for each in contenders)
    words = f"reached {hands} GiB/s with its start and end, memset in C {memset}, the kernel's way in C {kernel} "
    assert words in text(DECISIONS)


@pytest.mark.parametrize(
    ("benchmark", "titles", "work"),
    [
        ("preallocation", r"Preallocating .*GiB pages|Preallocating .*MiB pages", "huge pages of hugetlbfs"),
        ("preallocation", r"Preallocating .* of tmpfs .*", "`fallocate` of tmpfs"),
        ("data_operations", r"`copy` .*", "copies"),
    ],
)
def test_what_is_left_against_c(benchmark: str, titles: str, work: str) -> None:
    """The least and the greatest speed against C, without the start and the end of the task."""
    tables = [table for each in sections(benchmark) if re.fullmatch(titles, each.title) for table in each.tables]
    left = [float(row[-1]) for each in tables if each.header[-1] == "speed against C without them" for row in each.rows]
    assert f"{min(left):.2f} to {max(left):.2f} for {work}" in text(DECISIONS)


def test_the_command_on_many_hosts() -> None:
    cpu = medians("fleet", "CPU of the controlling process")["512 hosts, a live table"]
    memory = medians("fleet", "Memory of the controlling process, the most that was resident")[
        "512 hosts, a live table"
    ]
    assert f"took {shown(cpu)} s of CPU and {shown(memory / (1 << 20))} MiB," in text("how-to/fleet.md")
