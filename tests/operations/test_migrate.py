"""What can be seen of ``migrate`` on one node; moves are proven in the virtual machine of tests/numa/."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import InvalidValue, KtaskfsError, NotSupported
from ktaskfs.host import syscalls
from ktaskfs.ktask import Job, TaskError
from ktaskfs.operations.migrate import WINDOW
from ktaskfs.operations.operation import Plan, Range
from tests.support.memory_files import allocated, dirty, is_all

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.operations.conftest import Place, Runner

HUGE = 2 << 20


def lines_of(plan: Plan) -> list[str]:
    Job(plan.nodes, plan.control).run()
    return plan.finish().splitlines()


def test_pages_that_are_there_already(runner: Runner, any_place: Place) -> None:
    unit = max(any_place.unit, HUGE)
    path = any_place.directory / "file"
    path.touch()
    os.truncate(path, 2 * unit)
    dirty(path, 0, 2 * unit)
    subprocess.run(["fallocate", "-p", "-l", str(unit), str(path)], check=True)
    pages = unit // any_place.unit
    assert lines_of(runner.prepare("migrate", path=path, nodes="0")) == [
        "moved 0",
        f"there {pages}",
        "failed 0",
        "outcome node pages",
        f"there 0 {pages}",
    ]
    assert allocated(path) == unit
    assert is_all(0xFF, path, unit, 2 * unit)


def test_pages_that_cannot_be_moved_are_counted(runner: Runner, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a machine that says the pages were elsewhere: half of them stay where they are."""
    path, pages = place.directory / "file", 4 if place.unit > 4096 else WINDOW
    path.touch()
    os.truncate(path, pages * place.unit)
    dirty(path, 0, pages * place.unit)
    moved: set[int] = set()

    def nodes(addresses: Sequence[int]) -> list[int]:
        return [0 if address in moved else 7 for address in addresses]

    def move(addresses: Sequence[int], nodes: Sequence[int], *, shared: bool) -> list[int]:
        assert shared == (os.geteuid() == 0)
        moved.update(addresses[::2])
        return [0 if address in moved else -errno.EACCES for address in addresses]

    monkeypatch.setattr(syscalls, "page_nodes", nodes)
    monkeypatch.setattr(syscalls, "move_pages", move)
    assert lines_of(runner.prepare("migrate", path=path, nodes="0")) == [
        f"moved {pages // 2}",
        "there 0",
        f"failed {pages // 2}",
        "outcome node pages",
        f"EACCES 7 {pages // 2}",
        f"moved 0 {pages // 2}",
    ]


def test_no_memory_for_any_more(runner: Runner, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place.directory / "file"
    path.touch()
    os.truncate(path, place.unit)
    dirty(path, 0, place.unit)

    def move(addresses: Sequence[int], nodes: Sequence[int], *, shared: bool) -> list[int]:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(syscalls, "page_nodes", lambda addresses: [7] * len(addresses))
    monkeypatch.setattr(syscalls, "move_pages", move)
    found = lines_of(runner.prepare("migrate", path=path, nodes="0", length=place.unit))
    assert found[-1] == "ENOMEM 7 1"


def test_what_an_earlier_run_left(runner: Runner, place: Place) -> None:
    path = place.directory / "file"
    path.touch()
    os.truncate(path, 4 * place.unit)
    dirty(path, 0, 4 * place.unit)
    plan = runner.prepare("migrate", [Range(1, 3, 0)], path=path, nodes="0")
    assert lines_of(plan)[1] == "there 2"


def test_truncated_meanwhile(runner: Runner, place: Place) -> None:
    path = place.directory / "file"
    path.touch()
    os.truncate(path, 8 * place.unit)
    plan = runner.prepare("migrate", path=path, nodes="0")
    os.truncate(path, place.unit)
    with pytest.raises(TaskError) as caught:
        Job(plan.nodes, plan.control).run()
    assert isinstance(caught.value.error, KtaskfsError)
    assert caught.value.error.errno == errno.ENXIO
    plan.finish()


def test_what_is_refused(runner: Runner, tmpfs: Path, area: Path) -> None:
    path, plain = tmpfs / "file", area / "plain"
    path.write_bytes(b"x")
    plain.write_bytes(b"x")
    before = os.listdir("/proc/self/fd")
    for texts, kind, word in (
        ({"path": path}, InvalidValue, "nodes is missing"),
        ({"path": path, "nodes": "99"}, InvalidValue, "node 99"),
        ({"path": plain, "nodes": "0"}, NotSupported, "works on"),
        ({"path": path, "nodes": "0", "offset": 1}, InvalidValue, "nothing to do"),
    ):
        with pytest.raises(kind, match=word):
            runner.prepare("migrate", **texts)
    assert os.listdir("/proc/self/fd") == before
