"""The number of requests to the daemon for an action: a request costs more than its answer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.daemon import Mount

TIMES = 200


def requests(mounted: Mount, action: Callable[[], object]) -> int:
    """The requests of one ``action``, on average: the daemon answers each with one write(2)."""

    def answers() -> int:
        words = Path(f"/proc/{mounted.pid}/io").read_text().split()
        return int(words[words.index("syscw:") + 1])

    action()  # the first makes the kernel look names up that it keeps
    before = answers()
    for _ in range(TIMES):
        action()
    return round((answers() - before) / TIMES)


def open_read_close(path: Path, directory: int | None = None) -> None:
    fd = os.open(path, os.O_RDONLY, dir_fd=directory)
    os.read(fd, 65536)
    os.close(fd)


@pytest.mark.parametrize("name", ["state", "status", "progress", "length"])
def test_requests_of_a_read(mounted: Mount, name: str) -> None:
    task = mounted.path / "tasks/t"
    task.mkdir()
    # READLINK of tasks; LOOKUP of the task, which may be gone, and of the file, whose size may be another; OPEN, READ;
    # FLUSH at close(2), and RELEASE.
    assert requests(mounted, lambda: open_read_close(task / name)) == 7
    assert requests(mounted, lambda: open_read_close(mounted.path / f"users/0/tasks/t/{name}")) == 6
    directory = os.open(task, os.O_PATH)
    assert requests(mounted, lambda: open_read_close(Path(name), directory)) == 5
    os.close(directory)
    fd = os.open(task / name, os.O_RDONLY)
    assert requests(mounted, lambda: os.pread(fd, 65536, 0)) == 1
    os.close(fd)
    assert requests(mounted, lambda: os.stat(task / name)) == 3


def test_requests_of_what_never_changes(mounted: Mount) -> None:
    assert requests(mounted, lambda: open_read_close(mounted.path / "version")) == 5
    assert requests(mounted, lambda: os.stat(mounted.path / "operations/clear")) == 0
