"""Starts while the spawner is killed, cannot be forked, or sends wrong answers."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
import trio
import trio.testing

from ktaskfs.errors import KtaskfsError, TooBig, WorkerLost
from ktaskfs.tasks import new_worker as new_worker_module
from ktaskfs.tasks.task import State
from ktaskfs.worker import protocol
from ktaskfs.worker.protocol import StartRequest
from tests.support.poll import DEADLINE
from tests.support.poll import until as wait_until
from tests.support.processes import child_called
from tests.support.tasks import change_texts
from tests.tasks.house import House, ended, kill_quietly, me, open_files, open_house, until

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_spawner_that_hangs_is_no_reason_to_wait_for_ever(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_worker_module, "TIMEOUT", 0.1)
    spawner = house.spawner()
    spawner.suspend()
    with pytest.raises(WorkerLost, match="cannot start a worker within") as error:
        await house.run(f"fallocate path={memory}/file length=64K")
    assert error.value.errno == errno.ETIMEDOUT
    spawner.resume()


async def test_a_spawner_that_was_killed_is_started_anew_and_tasks_do_not_notice(house: House, memory: Path) -> None:
    first = await house.paused(memory / "first")
    await house.kill_spawner()
    second = await house.run_one(f"fallocate path={memory}/second length=64K")
    assert await ended(second) is State.DONE
    assert first.state is State.PAUSED
    change_texts(first, rate_max=None)
    house.service.set_live(first)
    await house.service.resume(first, me())
    assert await ended(first) is State.DONE
    assert first.done(first.snapshot()) == 1 << 20


async def test_a_spawner_that_is_killed_unnoticed_is_started_anew(house: House, memory: Path) -> None:
    await ended(await house.run_one(f"fallocate path={memory}/first length=64K"))
    spawner = house.spawner()
    child_called(spawner.pid, "spare")  # it has closed the spawner's socket
    kill_quietly(spawner.pid)
    task = await house.run_one(f"fallocate path={memory}/file length=64K")
    assert await ended(task) is State.DONE


async def test_a_spawner_whose_end_is_noticed_before_a_request_fails_is_started_anew(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock = house.launcher._sock
    assert sock is not None

    async def send(*args: object) -> int:
        await house.kill_spawner()
        await trio.testing.wait_all_tasks_blocked()
        raise BrokenPipeError

    monkeypatch.setattr(sock, "sendmsg", send)
    assert await ended(await house.run_one(f"fallocate path={memory}/file length=64K")) is State.DONE


async def test_a_spawner_that_is_killed_during_a_start_fails_that_start(house: House, memory: Path) -> None:
    before = open_files()
    spawner = house.spawner()
    spawner.suspend()
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            with pytest.raises(WorkerLost, match="the spawner died") as error:
                await house.run(f"fallocate path={memory}/file length=64K")
            assert error.value.errname == "EIO"

        nursery.start_soon(write)
        await until(lambda: len(house.launcher._children) == 1, "the spawner is asked")
        spawner.kill()
    assert (len(house.table), house.files()) == (0, [])
    assert house.launcher._children == {}
    task = await house.run_one(f"fallocate path={memory}/file length=64K")
    assert await ended(task) is State.DONE
    await until(lambda: open_files() == before, "all descriptors are closed")


async def test_an_installation_that_cannot_start_one_says_so(
    workers: None, tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(tmp_path / "state") as house:
        await house.kill_spawner()
        before = open_files()
        monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
        with pytest.raises(WorkerLost, match="No such file"):
            await house.run(f"fallocate path={memory}/file length=64K")
        monkeypatch.setattr(sys, "executable", "/bin/true")
        with pytest.raises(WorkerLost):
            await house.run(f"fallocate path={memory}/file length=64K")
        await until(lambda: open_files() == before, "all descriptors are closed")


@pytest.mark.usefixtures("hasty")
async def test_requests_wait_in_line_while_the_spawner_takes_none(house: House, memory: Path) -> None:
    """Its socket is full, and trio lets one task wait for it. A look at the holders ended the daemon then."""
    sock = house.launcher._sock
    assert sock is not None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)  # the least: some requests
    spawner = house.spawner()
    spawner.suspend()
    tasks = [await house.run_one(f"fallocate path={memory}/{number} length=64K") for number in range(16)]
    with pytest.raises(KtaskfsError) as late:
        await house.service.looks.find(me(), trio.current_time())
    await until(lambda: len(house.launcher._children) == 1 + len(tasks), "the spawner is asked for all")
    spawner.resume()
    assert late.value.errno == errno.ETIMEDOUT
    assert [await ended(task) for task in tasks] == [State.DONE] * len(tasks)
    await house.service.looks.find(me(), trio.current_time() + DEADLINE)


BABBLER = """\
#!{python}
import os, socket, sys
sock = socket.socket(fileno=int(sys.argv[-1]))
with open("/dev/null") as null:
    for data in (b"x", b"[]", b"[" * 5000, b'["Forked", {{"ticket": 77, "pid": 1, "errno": 0}}]', b'["Exited", {{}}]'):
        socket.send_fds(sock, [data], [null.fileno()])
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""


async def test_a_spawner_that_babbles_does_no_harm(
    workers: None, tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    babbler = tmp_path / "python"
    babbler.write_text(BABBLER.format(python=sys.executable))
    babbler.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(babbler))
    before = open_files()
    with caplog.at_level(logging.ERROR):
        async with open_house(tmp_path / "state") as house:
            task = await house.run_one(f"fallocate path={memory}/file length=64K")
            assert await ended(task) is State.DONE
    assert "an invalid message" in caplog.text
    assert open_files() == before


async def test_more_ranges_than_fit_a_request_are_refused_in_words(house: House) -> None:
    ranges = [(number << 30, 1 << 20, -1) for number in range(1 << 15)]
    request = StartRequest("many", "clear", {}, ranges, None, {}, load_bal_shift=2)
    with pytest.raises(TooBig, match="the work that is left has too many separate ranges: start a new task"):
        await house.launcher.fork(request, [])


async def test_a_limit_on_processes_is_named(house: House, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = house.launcher._take

    def take_refusal(message: protocol.Message, fds: list[int]) -> None:
        take(message._replace(errno=errno.EAGAIN) if isinstance(message, protocol.Forked) else message, fds)

    monkeypatch.setattr(house.launcher, "_take", take_refusal)
    with pytest.raises(WorkerLost, match=r"cannot start a worker: pids\.max") as refused:
        await house.run(f"fallocate path={memory}/file length=64K")
    assert refused.value.errno == errno.EAGAIN


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_fork_that_is_given_up_waits_for_what_the_worker_takes_back(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch, *, cancelled: bool
) -> None:
    """Without a descriptor for the worker, or when a cancel comes before the answer."""
    before, take, exit_status = open_files(), house.launcher._take, house.launcher.exit_status
    workers: list[psutil.Process] = []

    def take_late(message: protocol.Message, fds: list[int]) -> None:
        if isinstance(message, protocol.Forked):
            wait_until((memory / "file").exists, "the worker has made its file")
            workers.append(psutil.Process(message.pid))
            workers[0].suspend()
            if cancelled:
                house.service.cancel(next(iter(house.table)))
            else:
                os.close(fds.pop())  # as the kernel, if this process has none left
        take(message, fds)

    async def waited(ticket: int | None) -> int | None:
        workers[0].resume()
        return await exit_status(ticket)

    with monkeypatch.context() as patch:
        patch.setattr(house.launcher, "_take", take_late)
        patch.setattr(house.launcher, "exit_status", waited)
        with pytest.raises(KtaskfsError) as refused:
            await house.run(f"fallocate path={memory}/file length=64K")
    assert refused.value.errno == (errno.ECANCELED if cancelled else errno.EMFILE)
    assert (list(house.table), house.files(), (memory / "file").exists()) == ([], [], False)
    assert house.launcher._children == {}
    await until(lambda: open_files() == before, "all descriptors are closed")
