"""The daemon is killed at every step of a task's life in turn; its successor must find each task exactly once."""

from __future__ import annotations

import itertools
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from string import ascii_lowercase
from typing import TYPE_CHECKING

import psutil
import pytest

from ktaskfs.tasks.crash_points import VARIABLE
from tests.support.poll import DEADLINE, until
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount

MIB = 1 << 20
LIFE = """
    echo "fallocate path=$1/first$2 length=4M chunk=1M name=first$2" > tasks/control || exit
    tail -n 1 tasks/first$2/wait || exit
    echo "fallocate path=$1/slow$2 length=16M rate_max=64K chunk=1M name=slow$2" > tasks/control || exit
    echo 1 > debug/ktask_max_tasks || exit
    echo "fallocate path=$1/queued$2 length=4M chunk=1M name=queued$2 queue=1" > tasks/control || exit
    echo 64 > debug/ktask_max_tasks && tail -n 1 tasks/queued$2/wait || exit
    mkdir tasks/made$2 && echo fallocate > tasks/made$2/op && echo $1/made$2 > tasks/made$2/path || exit
    echo 4M > tasks/made$2/length && echo start > tasks/made$2/control || exit
    tail -n 1 tasks/made$2/wait || exit
    for verb in pause resume cancel; do echo $verb > tasks/slow$2/control || exit; done
    tail -n 1 tasks/slow$2/wait || exit
    echo max > tasks/slow$2/rate_max && echo resume > tasks/slow$2/control || exit
    tail -n 1 tasks/slow$2/wait || exit
    rmdir tasks/first$2
"""
"""Actions on tasks below the directory $1, whose names end in $2."""
SIZES = {"first": 4 * MIB, "queued": 4 * MIB, "slow": 16 * MIB, "made": 4 * MIB}
LANES = 2
"""Concurrent steps, each with separate daemons, files and names: the start of two daemons takes most of a step."""


def stat(mount: Mount, task: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in mount.read(f"tasks/{task}/stat").splitlines())


def workers() -> dict[str, int]:
    """The worker processes that are our own orphans and grandchildren, by the task's name; each at most once."""
    found: dict[str, int] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            name = next(iter(process.cmdline()), "")  # nothing for a zombie
        except psutil.NoSuchProcess:
            continue
        if name.startswith("ktask/"):
            assert name[6:] not in found, f"two workers of {name}"
            found[name[6:]] = process.pid
    return found


def check_and_finish(mount: Mount, directory: Path, step: int) -> None:
    """The successor must find every task in a state that can continue, know every worker, and lose nothing."""
    tasks = [name for name in run("ls", str(mount.path / "tasks")).out.split() if name != "control"]
    for name in tasks:
        if stat(mount, name)["state"] in {"queued", "starting"}:
            assert mount.read(f"tasks/{name}/wait").splitlines()[-1] == "done", "there is room"
    known = {stat(mount, name)["pid"] for name in tasks}

    def all_known() -> bool:
        return all(str(pid) in known for task, pid in workers().items() if task.lstrip(ascii_lowercase) == str(step))

    until(all_known, "a worker that no record knows has ended")
    for name in tasks:
        size = SIZES[name.removesuffix(str(step))]
        before = stat(mount, name)
        state = before["state"]
        assert state in {"new", "running", "paused", "done", "cancelled", "interrupted"}, state
        assert int(before["done"]) <= int(before["total"])
        if state == "new":
            assert mount.shell(f"rmdir tasks/{name}").status == 0
            continue
        mount.write(f"tasks/{name}/rate_max", "max")
        if state in {"running", "paused"}:
            assert mount.write(f"tasks/{name}/control", "resume" if state == "paused" else "cancel")[0] in (0, 1)
            state = mount.read(f"tasks/{name}/wait").splitlines()[-1]
        if state in {"cancelled", "interrupted"}:
            done = int(stat(mount, name)["done"])
            assert mount.write(f"tasks/{name}/control", "resume") == (0, None), mount.read("info/last_cmd_status")
            state = mount.read(f"tasks/{name}/wait").splitlines()[-1]
            units = sum(int(line.split()[5]) for line in mount.read(f"tasks/{name}/threads").splitlines()[1:])
            assert units == size - done, "done twice, or not at all"
        assert state == "done"
        assert mount.read(f"tasks/{name}/progress") == f"{size} / {size}\n"
        assert (directory / name).stat().st_blocks * 512 == size
    assert not list(mount.statedir.glob("*.bad"))
    assert mount.write("tasks/control", f"fallocate path={directory}/next length=1M name=next{step}") == (0, None)
    assert mount.read(f"tasks/next{step}/wait").endswith("done\n")


def die_at(step: int, mount_maker: MountMaker, area: Path, tmpfs: Path) -> str:
    """Let a daemon die at a step, and check its successor; the daemon's last words, empty if it did not die."""
    state, directory = area / f"kept{step}", tmpfs / str(step)
    directory.mkdir()
    first = mount_maker(statedir=state, prefix=("env", f"{VARIABLE}={step}"))
    outcome = first.shell(LIFE, str(directory), str(step))
    if outcome.status == 0:
        first.close()
        return ""
    assert first.process.wait(DEADLINE) == -signal.SIGKILL, outcome.err
    said = first.log.read_text().splitlines()[-1]
    first.kill()
    second = mount_maker(statedir=state)
    check_and_finish(second, directory, step)
    second.close()
    shutil.rmtree(directory)
    return said


@pytest.mark.usefixtures("patient")
@pytest.mark.timeout(1800)  # it starts 160 daemons, each of which imports for 0.7 s of CPU time
@pytest.mark.parametrize("tmpfs", ["huge=never"], indirect=True)
def test_the_daemon_dies_at_every_step(mount_maker: MountMaker, area: Path, tmpfs: Path) -> None:
    steps, found, done = itertools.count(1), dict[int, str](), threading.Event()

    def lane() -> None:
        try:
            while not done.is_set():
                step = next(steps)
                found[step] = die_at(step, mount_maker, area, tmpfs)
                if not found[step]:
                    break
        finally:
            done.set()

    with ThreadPoolExecutor(LANES) as lanes:
        try:
            for each in [lanes.submit(lane) for _ in range(LANES)]:
                each.result()
        finally:
            done.set()
    died = {step for step, said in found.items() if said.startswith(f"dying at step {step}: ")}
    assert died == set(range(1, len(died) + 1))
    assert len(died) >= 40, "the life of these tasks has more steps than that"
    assert not any(found[step] for step in found.keys() - died)
