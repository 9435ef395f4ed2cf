"""``copy`` from and to filesystems on a disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support import filesystems
from tests.support.memory_files import HUGE, allocated, content, punch, same, write_bytes
from tests.support.runner import SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Place, Runner


@pytest.mark.parametrize("make", ["mkfs.xfs", "mkfs.btrfs"])
def test_from_and_to_other_disks(runner: Runner, place: Place, area: Path, make: str) -> None:
    """With a hole, past the page cache, and over existing data."""
    with filesystems.disk_image(area, make) as disk:
        source, path, back = disk / "source", place.directory / "file", disk / "back"
        write_bytes(source, content(SIZE))
        punch(source, 3 * HUGE, HUGE)
        runner.run("copy", source=source, path=path, direct=1)
        runner.run("copy", source=path, path=back)
        assert same(source, path, SIZE)
        assert same(source, back, SIZE)
        if os.stat(path).st_blksize == 4096:
            assert allocated(back) == allocated(source)
        write_bytes(path, content(SIZE, seed=2))
        runner.run("copy", source=path, path=back)
        runner.run("compare", source=path, path=back)
        assert same(path, back, SIZE)
