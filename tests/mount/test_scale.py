"""Thousands of ended tasks: each exists once, and no lookup examines all of them.

bench/interface.py measures the times.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from ktaskfs.operations.base.registry import find_operations
from ktaskfs.progress import NodeProgress, Phase, ThreadProgress, ThreadState
from ktaskfs.tasks.history import History
from ktaskfs.tasks.private_directory import PrivateDirectory
from ktaskfs.tasks.record import Record
from ktaskfs.tasks.state_directory import StateDirectory
from ktaskfs.tasks.task import EMPTY, Origin, State
from tests.support.resident import resident

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount

CLEAR = find_operations()["clear"]
TASKS = 2000
BYTES_PER_TASK = 12 << 10
"""The maximum memory of the daemon for a task with all files listed; ten thousand such tasks take 120 MiB."""


def ended_task(number: int) -> Record:
    """A record as a daemon leaves it of a task that is done."""
    final = replace(
        EMPTY,
        phase=Phase.DONE,
        started_ns=1,
        ended_ns=10**9,
        total=4096,
        nodes=(NodeProgress(0, 4096, 0, 4096),),
        threads=(ThreadProgress(0, 100 + number, 0, ThreadState.ENDED, 1, 4096, 5, 0, 4096, 4096),),
    )
    return Record(
        Origin(number, f"t{number}", number % 3, 0, created_ns=number),
        state=State.DONE,
        history=History(CLEAR, {"path": f"/dev/hugepages/{number}", "length": "4K"}, final=final),
    )


def populated(mount_maker: MountMaker, area: Path, options: str = "") -> Mount:
    """A mount that adopts TASKS ended tasks."""
    path = area / "populated"
    state = StateDirectory(PrivateDirectory(str(path)))
    for number in range(1, TASKS + 1):
        state.write(ended_task(number))
    state.close()
    return mount_maker(f"keep_finished=100000,{options}", statedir=path)


def test_every_task_is_there_once(mount_maker: MountMaker, area: Path) -> None:
    mount = populated(mount_maker, area)
    names = [f"t{number}" for number in range(1, TASKS + 1)]
    assert sorted(mount.shell("ls -f tasks").out.split()) == sorted([".", "..", "control", *names])
    numbers = Counter(mount.shell("find . -printf '%i\\n'").out.split())
    assert max(numbers.values()) == 1, "an inode number for each file"
    assert len(numbers) > TASKS * 20
    for name in (names[0], names[TASKS // 2], names[-1]):
        assert f"Path:\t/dev/hugepages/{name[1:]}\n" in mount.read(f"tasks/{name}/status")
        listed = mount.shell(f"ls -di tasks/{name}").out.split()[0]
        assert mount.shell(f"stat -c %i tasks/{name}").out.strip() == listed, "and it stays"
    assert f'ktaskfs_tasks{{operation="clear",state="done"}} {TASKS:.1f}' in mount.read("metrics")
    assert mount.shell("rmdir tasks/t7 && ls tasks | wc -l").out.split() == [str(TASKS)]
    assert mount.shell("cat tasks/t7/state").errname == "ENOENT"


def test_memory_for_each_task(mount_maker: MountMaker, area: Path) -> None:
    empty = resident(mount_maker().pid)
    mount = populated(mount_maker, area)
    assert mount.shell("find . -type f | wc -l").status == 0
    mount.shell("cat tasks/*/status > /dev/null")
    assert resident(mount.pid) - empty < TASKS * BYTES_PER_TASK


def test_the_oldest_go_first(mount_maker: MountMaker, area: Path) -> None:
    mount = populated(mount_maker, area)
    assert mount.write("debug/ktask_keep_finished", "10") == (0, None)
    kept = sorted(int(name[1:]) for name in mount.shell("ls tasks").out.split() if name != "control")
    assert len(kept) == 10
    for uid in range(3):  # three users had as many each
        of_user = [number for number in kept if number % 3 == uid]
        assert len(of_user) in (3, 4)
        assert of_user == [number for number in range(TASKS + 1) if number % 3 == uid][-len(of_user) :]
    assert len(list(mount.statedir.glob("*.json"))) == 10
