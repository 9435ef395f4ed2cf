"""The verbs for a task in each state, and the effects of a failing state directory."""

from __future__ import annotations

import errno
import logging
import os
import signal
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import KtaskfsError, TargetError, WrongState
from ktaskfs.host import credentials
from ktaskfs.span import Node
from ktaskfs.tasks import launcher as launcher_module
from ktaskfs.tasks import starter as starter_module
from ktaskfs.tasks.history import ALL_CAPABILITIES
from ktaskfs.tasks.spec import parse_spec
from ktaskfs.tasks.task import CANCELLABLE, RESUMABLE, Origin, State, Task
from tests.support.poll import DEADLINE
from tests.support.tasks import change_texts
from tests.tasks.house import OPERATIONS, House, ended, me, open_files, until

if TYPE_CHECKING:
    from pathlib import Path

    from ktaskfs.tasks.worker_handle import WorkerHandle

SIZE = 1 << 20
VERBS = {
    "start": frozenset({State.NEW}),
    "pause": frozenset({State.RUNNING}),
    "resume": RESUMABLE | {State.PAUSED},
    "cancel": CANCELLABLE,
    "kill": CANCELLABLE,
    "forget": frozenset(State) - CANCELLABLE,
}


async def apply(house: House, verb: str, task: Task) -> None:
    """The effect of a write of ``verb``."""
    if verb in ("start", "resume"):
        await getattr(house.service, verb)(task, me())
    else:
        getattr(house.service, verb)(task)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_that_does_not_fit_the_state_is_refused_and_changes_nothing(
    house: House, verb: str, state: State
) -> None:
    task = Task(Origin.now(1, "t", os.geteuid(), os.getegid()))
    house.table.add(task)
    house.table.move(task, state)
    before = open_files(), task.requests
    if state in VERBS[verb]:
        return  # separate tests cover the verbs that fit
    with pytest.raises(WrongState) as refusal:
        await apply(house, verb, task)
    assert refusal.value.errno == errno.EBUSY
    assert (task.state, task in house.table, open_files(), task.requests) == (state, True, *before)


async def test_a_task_is_paused_resumed_and_paused_again(house: House, memory: Path) -> None:
    before = open_files()
    task = await house.paused(memory / "file")
    assert task.state is State.PAUSED
    assert house.record(task)["state"] == "paused"
    await house.service.resume(task, me())
    assert (task.state, house.record(task)["state"]) == (State.RUNNING, "running")
    house.service.pause(task)
    change_texts(task, rate_max=None)
    house.service.set_live(task)
    await house.service.resume(task, me())
    assert await ended(task) is State.DONE
    assert task.done(task.snapshot()) == SIZE
    await until(lambda: open_files() == before, "all descriptors are closed")


@pytest.mark.parametrize("pause", [False, True])
async def test_cancel_ends_a_task_after_the_chunk_and_resume_does_the_rest(
    house: House, memory: Path, pause: bool
) -> None:
    task = await house.paused(memory / "file")
    if not pause:
        await house.service.resume(task, me())
    house.service.cancel(task)
    assert await ended(task) is State.CANCELLED
    assert (task.done(task.snapshot()), task.total(task.snapshot())) == (4096, SIZE)
    change_texts(task, rate_max=None)
    await house.service.resume(task, me())
    assert await ended(task) is State.DONE
    assert (task.done(task.snapshot()), task.total(task.snapshot())) == (SIZE, SIZE)
    assert task.history.remaining == (Node(4096, SIZE - 4096, -1),)


@pytest.mark.parametrize("how", ["kill", "signal"])
async def test_a_worker_that_is_killed_leaves_the_exact_position(
    house: House, memory: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher_module, "STATUS_PATIENCE", DEADLINE)
    before = open_files()
    task = await house.paused(memory / "file")
    assert task.worker is not None
    if how == "kill":
        house.service.kill(task)
    else:
        os.kill(task.worker.pid, signal.SIGKILL)
    assert await ended(task) is State.INTERRUPTED
    snapshot = task.snapshot()
    assert (snapshot.errno, snapshot.error_position, task.done(snapshot)) == (errno.EINTR, 4096, 4096)
    assert snapshot.message == "the worker died, killed by signal 9 (SIGKILL)"
    await until(lambda: open_files() == before, "all descriptors are closed")
    assert house.files() == ["00000001.json"]
    change_texts(task, rate_max=None)
    await house.service.resume(task, me())
    assert await ended(task) is State.DONE
    assert task.done(task.snapshot()) == task.total(task.snapshot()) == SIZE


async def test_an_earlier_run_is_never_counted_twice(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await house.paused(memory / "file")
    house.service.kill(task)
    await ended(task)
    house.spawner().suspend()
    monkeypatch.setattr(starter_module, "PATIENCE", 0.0)
    await house.service.resume(task, me())
    assert task.state is State.STARTING
    assert (task.done(task.snapshot()), task.total(task.snapshot())) == (4096, SIZE)
    house.service.cancel(task)
    assert await ended(task) is State.CANCELLED
    assert (task.done(task.snapshot()), task.total(task.snapshot())) == (4096, SIZE)
    house.spawner().resume()
    change_texts(task, rate_max=None)
    await house.service.resume(task, me())
    assert await ended(task) is State.DONE
    assert (task.done(task.snapshot()), task.total(task.snapshot())) == (SIZE, SIZE)


async def test_a_resume_that_is_refused_changes_nothing(house: House, memory: Path) -> None:
    before = open_files()
    task = await house.run_one(f"clear path={make_file(memory / 'file')} chunk=4096 rate_max=1")
    await until(lambda: task.snapshot().done > 0, "the first chunk")
    house.service.kill(task)
    await ended(task)
    history, record = task.history, house.record(task)
    os.unlink(memory / "file")
    for _ in range(2):
        with pytest.raises(TargetError, match="No such file"):
            await house.service.resume(task, me())
        assert (task.state, task.history) == (State.INTERRUPTED, history)
        assert house.record(task) == record
    await until(lambda: open_files() == before, "all descriptors are closed")


async def test_a_start_that_is_refused_changes_nothing(house: House, memory: Path) -> None:
    """Neither in memory nor in the record, from which a later daemon makes the task."""
    task = house.service.create_empty("t", os.geteuid(), os.getegid(), ALL_CAPABILITIES)
    before = task.history, house.record(task)
    for line in (f"clear path={memory}/none offset=4096", "clear path=none chunk=8192"):
        with pytest.raises(KtaskfsError):
            await house.service.start(task, me(), parse_spec(line, OPERATIONS))
        assert (task.state, task.history, house.record(task)) == (State.NEW, *before)
    task.define(OPERATIONS["clear"], {"path": "none"})
    house.service.save(task)
    before = task.history, house.record(task)
    with pytest.raises(TargetError, match="No such file"):
        await house.service.start(task, me())
    assert (task.state, task.history, house.record(task)) == (State.NEW, *before)
    assert task.texts == {"path": "none"}, "as it was written"


def make_file(path: Path) -> Path:
    path.write_bytes(b"x" * SIZE * 8)
    return path


async def test_live_limits_reach_the_worker(house: House, memory: Path) -> None:
    task = await house.paused(memory / "file")
    house.set("nice", 3)
    assert task.requests.nice == 3
    change_texts(task, nice="5")
    house.service.set_live(task)
    assert task.requests.nice == 5


async def test_finished_tasks_beyond_the_limit_go_at_once(house: House, memory: Path) -> None:
    for number in range(3):
        await ended(await house.run_one(f"fallocate path={memory}/file length=64K name=t{number}"))
    house.set("keep_finished", 1)
    assert [task.name for task in house.table] == ["t2"]
    assert house.files() == ["00000003.json"]
    house.set("keep_finished", 0)
    assert (len(house.table), house.files()) == (0, [])
    task = await house.run_one(f"fallocate path={memory}/file length=64K")
    assert await ended(task) is State.DONE
    await until(lambda: len(house.table) == 0, "it is not kept")


# ---- a state directory that fails ----


async def test_a_record_that_cannot_be_written_refuses_the_start(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_files()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(house.state, "write", fail)
    with pytest.raises(TargetError, match="record") as refusal:
        await house.run(f"fallocate path={memory}/a length=64K", f"fallocate path={memory}/b length=64K")
    assert refusal.value.errno == errno.ENOSPC
    assert (len(house.table), house.files()) == (0, [])
    await until(lambda: os.listdir(memory) == [], "what was prepared is taken back")
    await until(lambda: open_files() == before, "all descriptors are closed")


async def test_a_page_that_cannot_be_made_refuses_the_start(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_files()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(house.state, "create_page", fail)
    with pytest.raises(TargetError, match="make a page in the state directory"):
        await house.run(f"fallocate path={memory}/a length=64K")
    assert (len(house.table), os.listdir(memory), open_files()) == (0, [], before)


@pytest.mark.parametrize("method", ["write", "forget_page", "forget"])
async def test_a_directory_that_fails_later_costs_no_task_and_not_the_daemon(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    before = open_files()
    task = await house.paused(memory / "file")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    change_texts(task, rate_max=None)
    with caplog.at_level(logging.ERROR), monkeypatch.context() as patch:
        patch.setattr(house.state, method, fail)
        house.service.set_live(task)
        await house.service.resume(task, me())
        assert await ended(task) is State.DONE
        assert house.table.get(task.name) is task
        house.service.forget(task)
    assert "Input/output error" in caplog.text
    assert len(house.table) == 0
    await until(lambda: open_files() == before, "all descriptors are closed")
    assert await ended(await house.run_one(f"fallocate path={memory}/file length=64K")) is State.DONE


async def test_a_page_that_cannot_be_read_at_the_end_interrupts_the_task(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await house.paused(memory / "file")
    other = await house.paused(memory / "other")
    assert task.worker is not None
    directory = os.open(memory, os.O_RDONLY)  # pread(2) and pwrite(2) refuse it
    os.dup2(directory, task.worker.page, inheritable=False)
    os.close(directory)
    with pytest.raises(TargetError, match="tell the worker"):
        house.service.cancel(task)
    house.set("nice", 3)
    assert other.requests.nice == 3
    house.service.kill(task)
    assert await ended(task) is State.INTERRUPTED
    house.service.cancel(other)
    assert await ended(other) is State.CANCELLED


async def test_a_bug_at_the_end_of_one_task_does_not_end_the_others(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = await house.paused(memory / "first")
    second = await house.paused(memory / "second")
    conclude = house.service._lifecycle.conclude

    def fail(task: Task, worker: WorkerHandle, status: int | None) -> None:
        if task is first:
            raise ZeroDivisionError
        conclude(task, worker, status)

    monkeypatch.setattr(house.service._lifecycle, "conclude", fail)
    with caplog.at_level(logging.ERROR):
        for task in (first, second):
            house.service.kill(task)
        assert await ended(second) is State.INTERRUPTED
        await until(lambda: "ZeroDivisionError" in caplog.text, "the bug is in the log")


async def test_a_bug_in_starting_one_task_is_its_own_error(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = open_files()

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(credentials, "start_time", fail)
        with pytest.raises(KtaskfsError, match="unexpectedly") as error:
            await house.run(f"fallocate path={memory}/file length=64K")
    assert error.value.errname == "EIO"
    assert "ZeroDivisionError" in caplog.text
    await until(lambda: os.listdir(memory) == [], "what was prepared is taken back")
    await until(lambda: open_files() == before, "all descriptors are closed")
