"""A process that a spec names may hang in execve(2), and whoever reads its stat hangs as well."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest
import trio

from ktaskfs.errors import TargetError
from ktaskfs.host import credentials
from ktaskfs.host.files import read_file
from ktaskfs.tasks import adoption, named_processes
from ktaskfs.tasks.named_processes import OF_ONE_MAX, NamedProcesses
from ktaskfs.tasks.task import State
from ktaskfs.user_threads import NoThread
from tests.support.poll import DEADLINE
from tests.tasks.house import House, busy, change_record, ended, line, open_files, open_house, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("workers")
SPEC = f"survey pid={os.getpid()} queue=1 name=named"


class Hang:
    """While ``on``, every read of this process's stat takes until the end of the test."""

    def __init__(self) -> None:
        self.on = False
        self.met = threading.Event()
        self.over = threading.Event()
        self.threads: set[int] = set()

    def read(self, path: str, directory: int | None = None, most: int = 1 << 20) -> bytes:
        if self.on and path == f"/proc/{os.getpid()}/stat":
            self.threads.add(threading.get_ident())
            self.met.set()
            self.over.wait(DEADLINE)  # so that a reader on the thread of trio fails the test, and does not hang it
        return read_file(path, directory, most)


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hang]:
    hang = Hang()
    monkeypatch.setattr(credentials, "read_file", hang.read)
    yield hang
    hang.over.set()


async def test_a_write_that_names_it_fails_and_keeps_nothing(
    house: House, memory: Path, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named_processes, "PATIENCE", 0.01)
    first = await busy(house, memory)
    before = open_files()
    hang.on = True
    with pytest.raises(TargetError, match=f"^process {os.getpid()} could not be looked at ") as refused:
        await house.run(SPEC)
    assert refused.value.errno == errno.ETIMEDOUT
    assert threading.get_ident() not in hang.threads
    assert (list(house.table), open_files()) == ([first], before)


async def test_a_queued_task_that_names_it_fails_alone(
    house: House, memory: Path, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await busy(house, memory)
    named, other = await house.run(SPEC, line(memory / "other"))
    monkeypatch.setattr(named_processes, "PATIENCE", 0.01)
    hang.on = True
    house.service.kill(first)
    assert (await ended(named), named.snapshot().errno) == (State.FAILED, errno.ETIMEDOUT)
    assert await ended(other) is State.DONE
    assert threading.get_ident() not in hang.threads


async def test_a_queued_task_that_names_it_can_be_cancelled(house: House, memory: Path, hang: Hang) -> None:
    first = await busy(house, memory)
    (named,) = await house.run(SPEC)
    hang.on = True
    house.service.kill(first)
    await until(hang.met.is_set, "the look at the process")
    assert named.state is State.STARTING
    house.service.cancel(named)
    assert await ended(named) is State.CANCELLED


async def test_a_successor_does_not_wait_for_the_process_of_a_queued_task(
    tmp_path: Path, memory: Path, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(tmp_path / "state") as house:
        await busy(house, memory)
        await house.run(SPEC)
    monkeypatch.setattr(named_processes, "PATIENCE", 0.01)
    hang.on = True
    async with open_house(tmp_path / "state", max_tasks=1) as house:
        await house.service.adopt()
        house.service.kill(house.table.require("busy"))
        named = house.table.require("named")
        assert (await ended(named), named.snapshot().errno) == (State.FAILED, errno.ETIMEDOUT)
    assert threading.get_ident() not in hang.threads


async def test_no_worker_hangs_so_that_is_another_process(hang: Hang) -> None:
    """The number of a worker in a record may be a user's process by now."""
    hang.on = True
    assert await adoption._start_time(os.getpid(), trio.current_time() + 0.01) is None
    assert not hang.over.is_set()
    hang.on = False
    began = await adoption._start_time(os.getpid(), trio.current_time() + DEADLINE)
    assert began == credentials.start_time(os.getpid())


async def test_a_successor_waits_once_for_all_processes_that_hang(
    statedir: Path, memory: Path, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(statedir) as house:
        for name in ("one", "other"):
            await house.paused(memory / name)
    for number in (1, 2):
        change_record(statedir, number, pid=os.getpid())
    monkeypatch.setattr(adoption, "PATIENCE", 0.5)
    hang.on = True
    async with open_house(statedir) as house:
        await house.service.adopt()
        assert [task.state for task in house.table] == [State.INTERRUPTED] * 2
    assert len(hang.threads) == 1


async def test_without_a_thread_to_look_at_a_process_nothing_is_taken_over(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_thread(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    async with open_house(tmp_path / "state") as house:
        await busy(house, memory)
    before = open_files()
    async with open_house(tmp_path / "state") as house:
        with monkeypatch.context() as patch:
            patch.setattr(trio.to_thread, "run_sync", no_thread)
            with pytest.raises(NoThread):
                await house.service.adopt()
        assert list(house.table) == []
    assert open_files() == before
    async with open_house(tmp_path / "state") as house:
        await house.service.adopt()
        assert house.table.require("busy").state is State.PAUSED


async def test_the_threads_of_a_user_that_hang_delay_no_other_user(hang: Hang, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_processes, "PATIENCE", 0.01)
    hang.on = True
    named = NamedProcesses()
    for _ in range(OF_ONE_MAX + 1):
        with pytest.raises(TargetError, match="try again"):
            await named.began(7, [os.getpid()])
    await until(lambda: len(hang.threads) == OF_ONE_MAX, "all that may have begun")
    assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    hang.on = False
    monkeypatch.setattr(named_processes, "PATIENCE", DEADLINE)
    assert await named.began(8, [os.getpid()]) == {os.getpid(): credentials.start_time(os.getpid())}
