"""Files that report size 0, but have data: virtual files."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import Finding
from tests.operations.trees.ground import make

if TYPE_CHECKING:
    from tests.support.runner import Runner

VIRTUAL = Path("/proc/sys/kernel/random")


def failure(runner: Runner, operation: str, **texts: object) -> set[str]:
    """The reasons for what was skipped."""
    with pytest.raises(Finding) as caught:
        runner.run(operation, **texts)
    assert caught.value.errno == errno.EOPNOTSUPP
    return {
        line.removeprefix("# ")
        for line in caught.value.result.splitlines()
        if line.removeprefix("# ").startswith("EOPNOTSUPP ")
    }


def test_size_0_is_not_taken_for_the_truth(runner: Runner, disk: Path) -> None:
    reasons = {f"EOPNOTSUPP {path.name}" for path in VIRTUAL.iterdir()}
    assert "EOPNOTSUPP boot_id" in reasons
    assert failure(runner, "checksum", path=VIRTUAL) == reasons
    assert failure(runner, "checksum", path=VIRTUAL / "boot_id", algorithm="md5sum") == {"EOPNOTSUPP boot_id"}
    assert failure(runner, "copy", source=VIRTUAL, path=disk / "copy") == reasons
    assert list((disk / "copy").iterdir()) == []
    (disk / "empty").mkdir()
    for path in VIRTUAL.iterdir():
        (disk / "empty" / path.name).touch()
    assert failure(runner, "compare", source=VIRTUAL, path=disk / "empty") == reasons
    assert failure(runner, "compare", source=disk / "empty", path=VIRTUAL) == reasons


def test_an_empty_file_is_one(runner: Runner, disk: Path) -> None:
    make(disk / "source/empty").write_bytes(b"")
    runner.run("copy", source=disk / "source", path=disk / "copy")
    runner.run("compare", source=disk / "source", path=disk / "copy")
    assert (disk / "copy/empty").stat().st_size == 0
