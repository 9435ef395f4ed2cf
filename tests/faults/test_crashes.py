"""The daemon is killed at every step of a task's life in turn; its successor must find everything, once."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import psutil
import pytest

from ktaskfs.tasks.crash_points import VARIABLE
from tests.support.poll import until
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount

MIB = 1 << 20
LIFE = """
    echo "fallocate path=$1/first length=4M chunk=1M name=first" > tasks/control || exit
    tail -n 1 tasks/first/wait || exit
    echo "fallocate path=$1/slow length=16M rate_max=4M chunk=1M name=slow" > tasks/control || exit
    mkdir tasks/made && echo fallocate > tasks/made/op && echo $1/made > tasks/made/path || exit
    echo 4M > tasks/made/length && echo start > tasks/made/control || exit
    tail -n 1 tasks/made/wait || exit
    echo pause > tasks/slow/control && echo resume > tasks/slow/control && echo cancel > tasks/slow/control || exit
    tail -n 1 tasks/slow/wait || exit
    echo max > tasks/slow/rate_max && echo resume > tasks/slow/control || exit
    tail -n 1 tasks/slow/wait || exit
    rmdir tasks/first
"""
SIZES = {"first": 4 * MIB, "slow": 16 * MIB, "made": 4 * MIB}


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


def check_and_finish(mount: Mount, tmpfs: Path) -> None:
    """What the successor must find: every task in a state it can go on from, every worker known, nothing lost."""
    tasks = [name for name in run("ls", str(mount.path / "tasks")).out.split() if name != "control"]
    known = {stat(mount, name)["pid"] for name in tasks}
    until(lambda: all(str(pid) in known for pid in workers().values()), "a worker that no record knows has ended")
    for name in tasks:
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
            assert units == SIZES[name] - done, "done twice, or not at all"
        assert state == "done"
        assert mount.read(f"tasks/{name}/progress") == f"{SIZES[name]} / {SIZES[name]}\n"
        assert (tmpfs / name).stat().st_blocks * 512 == SIZES[name]
    assert not list(mount.statedir.glob("*.bad"))
    assert mount.write("tasks/control", f"fallocate path={tmpfs}/next length=1M name=next") == (0, None)
    assert mount.read("tasks/next/wait").endswith("done\n")


@pytest.mark.parametrize("tmpfs", ["huge=never"], indirect=True)
def test_the_daemon_dies_at_every_step(
    mount_maker: MountMaker, area: Path, tmpfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, seen = 0, []
    while True:
        step += 1
        state = area / f"kept{step}"
        monkeypatch.setenv(VARIABLE, str(step))
        first = mount_maker(statedir=state)
        monkeypatch.delenv(VARIABLE)
        outcome = first.shell(LIFE, str(tmpfs))
        if outcome.status == 0:
            first.close()
            break
        assert first.process.wait(10) == -signal.SIGKILL, outcome.err
        seen.append(first.log.read_text().splitlines()[-1])
        first.kill()
        second = mount_maker(statedir=state)
        check_and_finish(second, tmpfs)
        second.close()
        for file in tmpfs.iterdir():
            file.unlink()
    assert step > 40, "the life of these tasks has more steps than that"
    assert len(seen) == step - 1
