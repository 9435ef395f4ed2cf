"""A default that the target decides is shown after the start, by later daemons, too."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from ktaskfs.control import task_text
from ktaskfs.tasks.history import ALL_CAPABILITIES, History
from ktaskfs.tasks.new_worker import planned
from ktaskfs.tasks.task import State, Task
from ktaskfs.worker import protocol
from tests.tasks.house import OPERATIONS, House, ended, me, open_house

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("workers")

DECLARED = {each.name: each for each in OPERATIONS["checksum"].declared}
READY = protocol.Ready(1, {"files": {}, "end": 0, "size": 0, "total": 1, "tree": 0}, {})


def shown(task: Task) -> tuple[str, str]:
    """The algorithm in its file and in ``status``."""
    lines = dict(line.split(":\t", 1) for line in task_text.status(task, DECLARED.values()).splitlines())
    return task.parameter_text(DECLARED["algorithm"]), lines["Algorithm"]


async def test_the_one_in_use_is_shown(tmp_path: Path, memory: Path) -> None:
    (memory / "file").write_bytes(os.urandom(3 << 20))
    used = {
        f"path={memory}/file": "crc32",
        f"path={memory}": "sha256sum",
        f"path={memory} plan=1": "sha256sum",
        f"path={memory}/file algorithm=md5sum": "md5sum",
    }
    async with open_house(tmp_path / "state") as house:
        for spec, algorithm in used.items():
            task = await house.run_one(f"checksum {spec}")
            assert shown(task) == (algorithm, algorithm)
            assert await ended(task) in (State.DONE, State.PLANNED)
            assert shown(task) == (algorithm, algorithm)
        running = await house.run_one(f"checksum path={memory}/file rate_max=1 chunk=1M name=running")
        house.service.pause(running)
    async with open_house(tmp_path / "state") as house:
        await house.service.adopt()
        found = {task.name: shown(task)[0] for task in house.table}
        assert found == {f"checksum-{number}": each for number, each in enumerate(used.values(), 1)} | {
            "running": "crc32"
        }
        house.service.kill(house.table.require("running"))
        assert await ended(house.table.require("running")) is State.INTERRUPTED


async def test_before_a_start_all_are_shown(house: House, memory: Path) -> None:
    task = house.service.create_empty("new", os.getuid(), os.getgid(), ALL_CAPABILITIES)
    task.define(OPERATIONS["checksum"], {"path": str(memory)})
    for text in ("sha256sum", "crc32|sha256sum"):
        task.set_parameter(DECLARED["algorithm"], text)
        assert shown(task) == (text, text)
    await house.service.start(task, me())
    assert shown(task) == ("sha256sum", "sha256sum")
    assert await ended(task) is State.DONE


@pytest.mark.parametrize(
    "lie", [{"algorithm": "md5sum"}, {"algorithm": ["crc32"]}, {"nice": "5"}, {"none": "x"}], ids=str
)
def test_a_worker_can_name_only_possible_defaults(lie: dict[str, str]) -> None:
    history = History(OPERATIONS["checksum"], {"path": "/"})
    assert planned(history, READY._replace(defaults=lie)).used == {}
    assert planned(history, READY._replace(defaults={"algorithm": "crc32"})).used == {"algorithm": "crc32"}


def make(target: Path, kind: str) -> None:
    if kind == "directory":
        target.mkdir()
    (target / "inside" if kind == "directory" else target).write_bytes(bytes(1 << 20))


@pytest.mark.parametrize(("first", "second"), [("file", "directory"), ("directory", "file")])
async def test_a_start_of_another_target_decides_anew(
    house: House, memory: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    """Nothing was done, so a resume is a first start."""
    used = {"file": "crc32", "directory": "sha256sum"}
    make(memory / "target", first)

    def hang(where: str) -> None:
        worker = house.table.require("t").worker
        if where == "the worker is ready" and worker is not None:
            worker.signal(signal.SIGSTOP)

    with monkeypatch.context() as patch:
        patch.setattr(house.state, "crash_point", hang)
        task = await house.run_one(f"checksum path={memory}/target name=t")
    assert shown(task) == (used[first], used[first])
    house.service.kill(task)
    assert await ended(task) is State.INTERRUPTED
    (memory / "target").rename(memory / "old")
    make(memory / "target", second)
    await house.service.resume(task, me())
    assert shown(task) == (used[second], used[second])
    assert await ended(task) is State.DONE
    fresh = await house.run_one(f"checksum path={memory}/target")
    assert await ended(fresh) is State.DONE
    assert task.history.result == fresh.history.result
