"""The visible behaviour of ``migrate`` on one node; the virtual machine of tests/numa/ tests real moves."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import InvalidValue, KtaskfsError
from ktaskfs.host import numa_pages
from ktaskfs.host.mapping import Mapping
from ktaskfs.ktask import Job, TaskError
from ktaskfs.memory import file_pages
from ktaskfs.memory.file_pages import WINDOW
from ktaskfs.operations.ranges import migrate
from ktaskfs.span import Node
from tests.support.memory_files import allocated, dirty, is_all
from tests.support.poll import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ktaskfs.operations.base.plan import Plan
    from tests.support.runner import Place, Runner

HUGE = 2 << 20


def lines_of(plan: Plan) -> list[str]:
    return plan.finish(Job(plan.nodes, plan.control).run()).splitlines()


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
    """On a machine that reports the pages elsewhere: half of them stay where they are."""
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

    monkeypatch.setattr(numa_pages, "page_nodes", nodes)
    monkeypatch.setattr(numa_pages, "move_pages", move)
    assert lines_of(runner.prepare("migrate", path=path, nodes="0")) == [
        f"moved {pages // 2}",
        "there 0",
        f"failed {pages // 2}",
        "outcome node pages",
        f"EACCES 7 {pages // 2}",
        f"moved 0 {pages // 2}",
    ]


class Machine:
    """In place of the kernel: pages are on node 7 until they are moved, and only sleeping makes time go on.

    ``ended(pages)`` does what there is to do meanwhile and says with which status a call ends for each of these
    pages of the file; 0 moves one.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, unit: int, ended: Callable[[Sequence[int]], Sequence[int]]
    ) -> None:
        self._unit = unit
        self._ended = ended
        self._lock = threading.Lock()  # guards all below
        self._mapped: dict[int, Mapping] = {}
        self.where: dict[int, int] = {}
        self.slept = 0.0
        machine = self

        class Watched(Mapping):
            def __init__(self, fd: int, offset: int, length: int, *, reserve: bool, private: bool) -> None:
                super().__init__(fd, offset, length, reserve=reserve, private=private)
                with machine._lock:
                    machine._mapped[self.address] = self

            def close(self) -> None:
                with machine._lock:
                    machine._mapped.pop(self.address, None)
                super().close()

        monkeypatch.setattr(numa_pages, "page_nodes", self.nodes)
        monkeypatch.setattr(numa_pages, "move_pages", self.move)
        monkeypatch.setattr(file_pages, "Mapping", Watched)
        monkeypatch.setattr(migrate, "sleep", self.sleep)
        monkeypatch.setattr(migrate, "monotonic", lambda: self.slept)

    def _page(self, address: int) -> int:
        with self._lock:
            mapping = next(each for base, each in self._mapped.items() if 0 <= address - base < each.length)
        return (address - mapping.address + mapping.offset) // self._unit

    def nodes(self, addresses: Sequence[int]) -> list[int]:
        return [self.where.get(self._page(address), 7) for address in addresses]

    def move(self, addresses: Sequence[int], nodes: Sequence[int], *, shared: bool) -> list[int]:
        pages = [self._page(address) for address in addresses]
        states = self._ended(pages)
        self.where |= {page: node for page, node, state in zip(pages, nodes, states, strict=True) if state == 0}
        return list(states)

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.slept += seconds


def full(place: Place, pages: int) -> Path:
    """A file of so many pages."""
    path = place.directory / "file"
    path.touch()
    os.truncate(path, pages * place.unit)
    dirty(path, 0, pages * place.unit)
    return path


def test_a_lock_that_is_held_for_a_while(runner: Runner, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder of the page does not run: only time helps, not the number of tries."""

    def ended(pages: Sequence[int]) -> list[int]:
        return [0 if machine.slept >= 0.02 else -errno.EAGAIN] * len(pages)

    machine = Machine(monkeypatch, place.unit, ended)
    assert lines_of(runner.prepare("migrate", path=full(place, 4), nodes="0"))[:3] == ["moved 4", "there 0", "failed 0"]
    assert 0.02 <= machine.slept < 0.1


def test_pages_that_stay_for_good_are_not_waited_for_each(
    runner: Runner, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_pages, "WINDOW", 1)
    pages, calls = 64 if place.unit > 4096 else 2048, [0]

    def ended(pages: Sequence[int]) -> list[int]:
        calls[0] += 1
        return [-errno.EBUSY] * len(pages)

    machine = Machine(monkeypatch, place.unit, ended)
    found = lines_of(runner.prepare("migrate", path=full(place, pages), nodes="0"))
    assert found[-1] == f"EBUSY 7 {pages}"
    assert machine.slept < 3
    assert 2 * pages <= calls[0] < 3 * pages + 100


def test_another_try_keeps_out_of_the_way_of_first_ones(
    runner: Runner, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads of a task try at once, each its window; who fails tries again only when the other has ended."""
    both, again, tried, met = threading.Barrier(2), threading.Event(), set[int](), list[bool]()

    def ended(pages: Sequence[int]) -> list[int]:
        page = pages[0]
        if page in tried:
            again.set()
            return [0] * len(pages)
        tried.add(page)
        both.wait(DEADLINE)
        if page == 0:
            return [-errno.EAGAIN] * len(pages)
        met.append(again.wait(0.1))
        return [0] * len(pages)

    Machine(monkeypatch, place.unit, ended)
    plan = runner.prepare("migrate", path=full(place, 2), nodes="0", chunk=1)
    result = runner.result(plan._replace(control=dataclasses.replace(plan.control, max_chunk_size=1)))
    assert result.startswith("moved 2\n")
    assert met == [False]


def test_a_failed_chunk_moves_back_what_it_moved(runner: Runner, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunk that failed midway and the finished one."""
    monkeypatch.setattr(file_pages, "WINDOW", 1)

    def ended(pages: Sequence[int]) -> list[int]:
        if pages[0] == 5:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return [0] * len(pages)

    machine = Machine(monkeypatch, place.unit, ended)
    plan = runner.prepare("migrate", path=full(place, 8), nodes="0", undo=1, chunk=4)
    control = dataclasses.replace(plan.control, max_threads=1, max_chunk_size=4)
    with pytest.raises(TaskError) as caught:
        Job(plan.nodes, control).run()
    assert isinstance(caught.value.error, KtaskfsError)
    assert caught.value.error.errno == errno.EIO
    assert "moved_back 7 5\n" in plan.finish(caught.value.outcome)
    assert set(machine.where.values()) == {7}


def test_a_failure_stays_the_error_when_moving_back_fails_too(
    runner: Runner, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_pages, "WINDOW", 1)
    numbers = iter((0, errno.EIO, errno.EPERM))  # the first page moves, the second fails, the first is to move back

    def ended(pages: Sequence[int]) -> list[int]:
        if number := next(numbers):
            raise OSError(number, os.strerror(number))
        return [0] * len(pages)

    Machine(monkeypatch, place.unit, ended)
    plan = runner.prepare("migrate", path=full(place, 4), nodes="0", undo=1, chunk=4)
    error = runner.failure(plan, threads=1)
    assert error.errno == errno.EIO
    assert ["undo failed at 0" in note and os.strerror(errno.EPERM) in note for note in error.__notes__] == [True]


def test_no_memory_for_any_more(runner: Runner, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place.directory / "file"
    path.touch()
    os.truncate(path, place.unit)
    dirty(path, 0, place.unit)

    def move(addresses: Sequence[int], nodes: Sequence[int], *, shared: bool) -> list[int]:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(numa_pages, "page_nodes", lambda addresses: [7] * len(addresses))
    monkeypatch.setattr(numa_pages, "move_pages", move)
    found = lines_of(runner.prepare("migrate", path=path, nodes="0", length=place.unit))
    assert found[-1] == "ENOMEM 7 1"


def test_what_an_earlier_run_left(runner: Runner, place: Place) -> None:
    path = place.directory / "file"
    path.touch()
    os.truncate(path, 4 * place.unit)
    dirty(path, 0, 4 * place.unit)
    plan = runner.prepare("migrate", [Node(1, 2, 0)], path=path, nodes="0")
    assert lines_of(plan)[1] == "there 2"


def test_the_nodes_must_be_named(runner: Runner, tmpfs: Path) -> None:
    path = tmpfs / "file"
    path.write_bytes(b"x")
    error = runner.refused("migrate", path=path)
    assert (type(error), "nodes is missing" in error.message) == (InvalidValue, True)
