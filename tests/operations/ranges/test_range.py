"""The place of a new file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import NotSupported
from ktaskfs.operations.ranges import _range
from tests.support import filesystems
from tests.support.memory_files import HUGE, allocated

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Runner


@pytest.mark.parametrize("operation", ["fallocate", "copy"])
def test_a_place_of_huge_pages_without_its_mount(
    runner: Runner, tmpfs: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """/dev is a tmpfs, on which the file would have small pages, and nobody would notice."""
    monkeypatch.setattr(_range, "DEVICES", str(tmpfs))
    texts = {"length": HUGE} if operation == "fallocate" else {"source": plain}
    for name, mount in (("hugepages/vm0", "hugepages"), ("hugepages-1G//a/vm0", "hugepages-1G")):
        path = tmpfs / name
        path.parent.mkdir(parents=True)
        error = runner.refused(operation, path=f"{tmpfs}/{name}", **texts)
        assert isinstance(error, NotSupported)
        assert error.message.endswith(f"vm0 would have small pages: no hugetlbfs is mounted on {tmpfs / mount}")
        assert os.listdir(path.parent) == []
    (tmpfs / "shm").mkdir()
    runner.run(operation, path=tmpfs / "shm" / "hugepages", **texts)
    with filesystems.tmpfs(tmpfs / "hugepages", 64 * HUGE) as mounted:
        runner.run(operation, path=mounted / "vm0", **texts)
        assert allocated(mounted / "vm0")
