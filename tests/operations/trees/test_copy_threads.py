"""Which of the threads of a copy does what."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from ktaskfs.operations.trees import _pieces
from ktaskfs.operations.trees._data import FileData
from ktaskfs.operations.trees.copy import ONE_THREAD
from tests.operations.trees.ground import make, overlapping_sends

if TYPE_CHECKING:
    from pathlib import Path

    from ktaskfs.span import Span
    from tests.support.runner import Runner

MIB = 1 << 20


def test_one_thread_copies_a_file_unless_it_is_large(runner: Runner, disk: Path, tmpfs: Path) -> None:
    """However small the chunks are: threads that write to one file wait for each other."""
    for name, size in {"small": 20 * MIB, "large": 2 * ONE_THREAD + 5 * MIB}.items():
        make(disk / "source" / name).write_bytes(os.urandom(size))
    parts: list[tuple[int, int]] = []
    copy, copy_shared = FileData.copy, FileData.copy_shared

    def alone(data: FileData, source: int, target: int, part: Span) -> None:
        if part.size == 20 * MIB:
            parts.append(part)
        copy(data, source, target, part)

    def shared(data: FileData, source: int, target: int, part: Span, index: int) -> None:
        parts.append(part)
        copy_shared(data, source, target, part, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileData, "copy", alone)
        patch.setattr(FileData, "copy_shared", shared)
        runner.run("copy", source=disk / "source", path=tmpfs / "copy")
    large = [(0, ONE_THREAD), (ONE_THREAD, 2 * ONE_THREAD), (2 * ONE_THREAD, 2 * ONE_THREAD + 5 * MIB)]
    assert sorted(parts) == sorted([(0, 20 * MIB), *large])
    subprocess.run(["diff", "-r", disk / "source", tmpfs / "copy"], check=True)


@pytest.mark.parametrize("tmpfs", ["huge=never"], indirect=True)
def test_small_files_are_copied_by_one_thread_at_a_time(runner: Runner, disk: Path, tmpfs: Path) -> None:
    """Two threads took up to 1.7 times as long: they asked each other for the interpreter's lock at each call."""
    for number in range(1500):
        file = disk / f"source/d{number % 3}/{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 5000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pieces, "_sleeps", lambda: 0)  # on a busy machine calls wait, and then two threads are right
        overlaps = overlapping_sends(patch)
        runner.run("copy", source=disk / "source", path=tmpfs / "copy")
    assert not overlaps
    subprocess.run(["diff", "-r", disk / "source", tmpfs / "copy"], check=True)
