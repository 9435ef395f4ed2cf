"""``collapse`` of a file of memory: its small pages become huge pages with the same contents."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs.host.mapping import Mapping
from tests.support import filesystems
from tests.support.hugepages import smallest_pages
from tests.support.memory_files import HUGE, allocated, dirty

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.hugepages import TestPool
    from tests.support.runner import Runner

SIZE = 40 * HUGE


@pytest.fixture
def small(root: None, area: Path) -> Iterator[Path]:
    """A file of small pages, on a tmpfs that gives huge ones now."""
    with filesystems.tmpfs(area / "memory", 2 * SIZE, "huge=never") as memory:
        file = memory / "file"
        file.write_bytes(os.urandom(SIZE))
        subprocess.run(["mount", "-o", "remount,huge=advise", str(memory)], check=True)
        yield file


def values(text: str) -> dict[str, int]:
    head, _, _ = text.partition("reason bytes\n")
    return {key: int(value) for key, value in map(str.split, head.splitlines())}


def collapsed(runner: Runner, path: Path, **texts: object) -> dict[str, int]:
    return values(runner.result(runner.prepare("collapse", path=path, **texts)))


def test_small_pages_become_huge_ones(runner: Runner, small: Path) -> None:
    before = small.read_bytes()
    assert collapsed(runner, small) == {"collapsed": SIZE, "already": 0, "holes": 0, "left": 0}
    assert collapsed(runner, small) == {"collapsed": 0, "already": SIZE, "holes": 0, "left": 0}
    assert small.read_bytes() == before


def test_whole_huge_pages_of_the_range(runner: Runner, small: Path) -> None:
    found = collapsed(runner, small, offset=4096, length=3 * HUGE)
    assert found == {"collapsed": 2 * HUGE, "already": 0, "holes": 0, "left": 0}
    assert sum(collapsed(runner, small, offset=4096, length=HUGE).values()) == 0
    assert collapsed(runner, small, length=4 * HUGE)["already"] == 2 * HUGE


def test_a_file_that_is_cut_meanwhile(runner: Runner, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    populate = Mapping.populate_read

    def cut(mapping: Mapping, start: int, length: int) -> None:
        os.truncate(small, 0)
        populate(mapping, start, length)

    plan = runner.prepare("collapse", path=small)
    monkeypatch.setattr(Mapping, "populate_read", cut)
    assert runner.failure(plan, threads=1).errno == errno.ENXIO


def test_holes_stay_holes(runner: Runner, small: Path) -> None:
    os.truncate(small, 0)
    os.truncate(small, SIZE)
    with small.open("r+b") as file:
        file.seek(3 * HUGE + 8192)
        file.write(b"data")
    found = collapsed(runner, small)
    assert found == {"collapsed": HUGE, "already": 0, "holes": SIZE - HUGE, "left": 0}
    assert small.stat().st_blocks * 512 == HUGE


@smallest_pages
def test_holes_of_a_file_in_huge_pages(runner: Runner, pool: TestPool, hugetlbfs: Path) -> None:
    page = max(pool.page_size, HUGE)
    file = hugetlbfs / "file"
    file.touch()
    os.truncate(file, 3 * page)
    assert collapsed(runner, file) == {"collapsed": 0, "already": 0, "holes": 3 * page, "left": 0}
    dirty(file, page, 2 * page)
    assert collapsed(runner, file) == {"collapsed": 0, "already": page, "holes": 2 * page, "left": 0}
    assert allocated(file) == page


def test_a_mount_that_gives_none(runner: Runner, small: Path) -> None:
    subprocess.run(["mount", "-o", "remount,huge=never", str(small.parent)], check=True)
    text = runner.result(runner.prepare("collapse", path=small))
    assert values(text) == {"collapsed": 0, "already": 0, "holes": 0, "left": SIZE}
    assert text.endswith(f"reason bytes\nEINVAL {SIZE}\n")


def test_a_file_of_a_disk(runner: Runner, disk: Path) -> None:
    """If the kernel can; otherwise the message says what is missing."""
    (disk / "file").write_bytes(os.urandom(2 * HUGE))
    plan = runner.prepare("collapse", path=disk / "file")
    config = Path(f"/boot/config-{os.uname().release}")
    if config.exists() and "CONFIG_READ_ONLY_THP_FOR_FS=y" in config.read_text():
        assert values(runner.result(plan))["collapsed"] == 2 * HUGE
    else:
        error = runner.failure(plan)
        assert (error.errno, "CONFIG_READ_ONLY_THP_FOR_FS" in error.message) == (errno.EOPNOTSUPP, True)


def test_a_broken_disk_is_named(runner: Runner, disk: Path) -> None:
    """Its file, in which the filesystem is, loses all but its first part."""
    with filesystems.disk_image(disk, *filesystems.EXT4) as where:
        with (where / "file").open("wb") as file:
            file.write(os.urandom(16 * HUGE))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        subprocess.run(["mount", "-o", "remount,ro", str(where)], check=True)  # it writes nothing to the rest
        plan = runner.prepare("collapse", path=where / "file")
        size = (disk / "image").stat().st_size
        os.truncate(disk / "image", HUGE)
        try:
            error = runner.failure(plan)
        finally:
            os.truncate(disk / "image", size)
        assert (error.errno, error.message) == (errno.EIO, f"collapse {where}/file: Input/output error")
