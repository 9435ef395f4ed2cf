"""The caller of a queued task, which is kept: its root directory, and the process that its spec names."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import struct
import subprocess
import threading
from typing import TYPE_CHECKING

import psutil
import pytest
import trio

from ktaskfs.errors import TargetError
from ktaskfs.fuse.device import mount_device
from ktaskfs.fuse.mountpoint import abort, filesystems_at, unmount
from ktaskfs.host.credentials import CallerProcess
from ktaskfs.tasks import named_processes
from ktaskfs.tasks.kept_caller import KeptCaller, common_root
from ktaskfs.tasks.spec import parse_spec
from ktaskfs.tasks.task import State
from tests.tasks.house import OPERATIONS, House, busy, ended, line, me, open_files, open_house, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("workers")


@pytest.fixture
def silent_root(root: None, tmp_path: Path) -> Iterator[int]:
    """The root of a FUSE filesystem whose server answers nothing but the mount. It is aborted after some seconds."""
    place = tmp_path / "silent"
    place.mkdir()
    device = mount_device(str(place), "silent", allow_other=True)
    directory = os.open(place, os.O_PATH | os.O_DIRECTORY)
    request = os.read(device, 1 << 17)
    _, _, unique = struct.unpack_from("=IIQ", request)
    body = struct.pack("<4I2H2I2HI7I", 7, 31, 1 << 16, 0, 0, 0, 4096, 1, 0, 0, *[0] * 8)[:64]
    os.write(device, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)
    timer = threading.Timer(5, abort, filesystems_at(str(place)))
    timer.start()
    yield directory
    timer.cancel()
    os.close(directory)
    os.close(device)
    unmount(str(place))


def in_another_root(directory: Path) -> CallerProcess:
    """This process, as if ``directory`` were its root."""
    caller = me()
    flags = os.O_PATH | os.O_DIRECTORY
    other = CallerProcess(caller.identity, os.open(directory, flags), os.open(directory, flags))
    caller.close()
    return other


async def test_in_a_root_of_its_own_one_waits_as_long_as_the_daemon_lives(
    tmp_path: Path, memory: Path, root: None
) -> None:
    (memory / "root").mkdir()
    before = open_files()
    async with open_house(tmp_path / "state") as house:
        first = await busy(house, memory)
        specs = [parse_spec(f"fallocate path={path} length=64K name={path} queue=1", OPERATIONS) for path in "ab"]
        one, other = await house.service.run_specs(in_another_root(memory / "root"), specs)
        house.service.kill(first)
        assert await ended(one) is State.DONE
        assert (memory / "root" / "a").exists()
        await ended(other)
        await house.paused(memory / "busy", more="name=busy2")
        (last,) = await house.service.run_specs(
            in_another_root(memory / "root"), [parse_spec("clear path=/a name=last queue=1", OPERATIONS)]
        )
        assert last.state is State.QUEUED
        held = last.caller
        assert held is not None
    async with open_house(tmp_path / "state", max_tasks=1) as house:
        await house.service.adopt()
        last = house.table.require("last")
        assert last.state is State.INTERRUPTED
        assert "the caller's root directory is lost" in last.snapshot().message
    held.close()
    await until(lambda: open_files() == before, "all descriptors are closed")


async def test_a_root_whose_server_never_answers_keeps_nobody(house: House, memory: Path, silent_root: int) -> None:
    """The daemon must not ask a filesystem of the caller's, not even which directory that is."""
    await busy(house, memory)
    caller = me()
    os.close(caller.root)
    specs = [parse_spec(f"clear path={memory}/a queue=1", OPERATIONS)]
    (waiting,) = await house.service.run_specs(caller._replace(root=os.dup(silent_root)), specs)
    assert waiting.state is State.QUEUED
    house.service.cancel(waiting)


async def test_a_record_with_a_group_that_no_kernel_has_is_set_aside(tmp_path: Path, memory: Path) -> None:
    async with open_house(tmp_path / "state") as house:
        await busy(house, memory)
        (waiting,) = await house.run(line(memory / "a"))
        record = house.record(waiting)
        path = tmp_path / "state" / f"{waiting.number:08d}.json"
    record["caller"]["identity"]["groups"] = [1 << 40]
    path.write_text(json.dumps(record))
    async with open_house(tmp_path / "state") as house:
        await house.service.adopt()
        assert [task.name for task in house.table] == ["busy"]
        assert f"{path.name}.bad" in house.files()
        house.service.kill(house.table.require("busy"))
        await ended(house.table.require("busy"))


@pytest.fixture
def sleeper() -> Iterator[int]:
    """The number of a process."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


async def test_a_number_of_a_process_means_the_process_that_had_it(tmp_path: Path, memory: Path, sleeper: int) -> None:
    """Another one may have it when the task begins; only the first one's memory was meant."""
    spec = f"survey pid={sleeper} queue=1 name="
    async with open_house(tmp_path / "state") as house:
        await busy(house, memory)
        await house.run(f"{spec}same", f"{spec}other")
        path = tmp_path / "state" / f"{house.table.require('other').number:08d}.json"
    record = json.loads(path.read_text())
    record["caller"]["process"][1] -= 1  # as if that one had begun earlier, and had ended
    path.write_text(json.dumps(record))
    async with open_house(tmp_path / "state", max_tasks=1) as house:
        await house.service.adopt()
        first, same, other = house.table
        house.service.kill(first)
        assert (await ended(same), await ended(other)) == (State.DONE, State.FAILED)
        assert other.snapshot().errno == errno.ESTALE
        assert other.snapshot().message.startswith(f"process {sleeper} is not the one ")


async def test_a_process_that_has_ended_meanwhile_is_no_other_one(house: House, memory: Path, sleeper: int) -> None:
    first = await busy(house, memory)
    (waiting,) = await house.run(f"survey pid={sleeper} queue=1")
    os.kill(sleeper, signal.SIGKILL)
    await trio.to_thread.run_sync(os.waitpid, sleeper, 0)
    house.service.kill(first)
    assert (await ended(waiting), waiting.snapshot().errno) == (State.FAILED, errno.ESRCH)


async def test_a_task_that_was_cancelled_in_the_queue_means_the_same_process(
    house: House, memory: Path, sleeper: int
) -> None:
    first = await busy(house, memory)
    (waiting,) = await house.run(f"survey pid={sleeper} queue=1")
    house.service.cancel(waiting)
    house.service.kill(first)
    assert (await ended(first), waiting.state) == (State.INTERRUPTED, State.CANCELLED)
    history = waiting.history
    assert history.baseline is not None
    pid, began, _ = history.baseline.files["pid"]
    waiting.history = history._replace(baseline=history.baseline._replace(files={"pid": (pid, began - 1, 0)}))
    with pytest.raises(TargetError, match=f"process {sleeper} is not the process of the task's start"):
        await house.service.resume(waiting, me())
    waiting.history = history
    await house.service.resume(waiting, me())
    assert await ended(waiting) is State.DONE


async def test_no_process_of_an_earlier_boot_lives(tmp_path: Path, memory: Path, sleeper: int) -> None:
    """Another one may have the number, and have begun as long after boot."""
    async with open_house(tmp_path / "state") as house:
        first = await busy(house, memory)
        await house.run(f"survey pid={sleeper} queue=1 name=waiting")
        assert first.worker is not None
        worker = psutil.Process(first.worker.pid)
    (tmp_path / "state" / "lock").write_text("8a8ffd4e-0000-0000-0000-000000000000\n")
    async with open_house(tmp_path / "state", max_tasks=1) as house:
        await house.service.adopt()
        waiting = house.table.require("waiting")
        assert (await ended(waiting), waiting.snapshot().errno) == (State.FAILED, errno.ESTALE)
    worker.kill()


async def test_a_process_that_cannot_be_looked_at_fails_the_task_alone(
    house: House, memory: Path, sleeper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a descriptor, or if the number is another user's by now (hidepid=1)."""
    first = await busy(house, memory)
    (waiting,) = await house.run(f"survey pid={sleeper} queue=1")

    def fail(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(named_processes, "start_time", fail)
    house.service.kill(first)
    assert await ended(waiting) is State.FAILED
    assert waiting.snapshot().message == f"look at process {sleeper}: Too many open files"


@pytest.mark.parametrize("called", ["file_status", "os.dup"])
async def test_a_failed_look_at_the_root_leaves_no_descriptor(called: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(me()) as caller:
        kept = KeptCaller.of(caller, common_root(caller), paths_are_absolute=True)
    assert kept.root is not None
    before = open_files()

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(f"ktaskfs.tasks.kept_caller.{called}", fail)
    with pytest.raises(TargetError, match="open the root directory"):
        kept.open()
    assert open_files() == before
