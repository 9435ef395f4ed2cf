"""inotify(7) on files of the mount, with inotifywait: a task's state, in every view, and the table of all tasks."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.inotify import watching
from tests.support.poll import until
from tests.support.processes import child_called, has_ended
from tests.support.slow import start_slow, stop

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.inotify import Watch
    from tests.support.users import User


STATE = "tasks/slow/state"


@pytest.mark.parametrize("command", ["pause", "cancel"])
def test_a_change_of_state_is_told(mounted: Mount, memory: Path, area: Path, command: str) -> None:
    """As of kernfs (IN_MODIFY), and as systemd's path units want it (IN_ATTRIB)."""
    start_slow(mounted, memory, "slow")
    with watching(mounted, area / "watch", STATE) as watch:
        mounted.write("tasks/slow/control", command)
        watch.until(f"{STATE}:MODIFY", f"{STATE}:ATTRIB")
    if command == "pause":
        stop(mounted, "slow")


def test_progress_is_not_told(mounted: Mount, memory: Path, area: Path) -> None:
    start_slow(mounted, memory, "slow", rate="256K")
    with watching(mounted, area / "watch", STATE, "info/tasks") as watch:
        for name in ("one", "two"):  # the start may be told of when the watch has begun: with the first, or after it
            tell_of(mounted, watch, name)
        told = len(watch.text)
        done = int(mounted.read("tasks/slow/progress").split()[0])
        until(lambda: int(mounted.read("tasks/slow/progress").split()[0]) > done, "it goes on")
        tell_of(mounted, watch, "three")
        assert f"{STATE}:M" not in watch.text[told:]
    stop(mounted, "slow")


def tell_of(mount: Mount, watch: Watch, task: str) -> None:
    """Make a task, and return when the watch is told that the table has changed."""
    told = len(watch.text)
    assert mount.shell("mkdir tasks/$1", task).status == 0
    until(lambda: "info/tasks:ATTRIB" in watch.text[told:], f"{task} is told of")


@pytest.mark.parametrize("hidepid", [0, 2])
def test_the_owner_is_told_in_the_own_view(
    mount_maker: MountMaker, memory: Path, area: Path, two_users: tuple[User, User], hidepid: int
) -> None:
    mount = mount_maker(f"mode=0666,hidepid={hidepid}")
    ann, _ = two_users
    start_slow(mount, memory, "slow", user=ann)
    with watching(mount, area / "watch", STATE, user=ann) as watch:
        mount.write("tasks/slow/control", "pause")
        watch.until(f"{STATE}:MODIFY", f"{STATE}:ATTRIB")
    assert os.stat(mount.path / STATE).st_ino == int(mount.shell(f"stat -c %i {STATE}", user=ann).out)
    stop(mount, "slow")


def test_the_table_of_all_tasks_tells_of_tasks_to_come(mounted: Mount, memory: Path, area: Path) -> None:
    with watching(mounted, area / "watch", "info/tasks") as watch:
        start_slow(mounted, memory, "slow")
        watch.until("info/tasks:MODIFY", "info/tasks:ATTRIB")
    stop(mounted, "slow")


def helpers(mount: Mount) -> list[psutil.Process]:
    """The processes that touch files for this daemon."""
    return [each for each in psutil.Process(mount.pid).children(recursive=True) if touches(each)]


def touches(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[:1] == ["ktaskfs: toucher"]
    except psutil.NoSuchProcess:  # or it has ended, and its status was not read yet
        return False


def test_the_process_that_tells_is_there_while_something_changes(mounted: Mount) -> None:
    descriptors: list[int] = []

    def is_there() -> bool:  # ten seconds after the last change it is there no more
        assert mounted.shell("mkdir tasks/new && rmdir tasks/new").status == 0
        with contextlib.suppress(psutil.NoSuchProcess):
            descriptors[:] = [each.num_fds() for each in helpers(mounted)]
        return len(descriptors) == 1

    until(is_there, "it is there")
    assert descriptors[0] <= 5, "its standard streams, its socket is one of them, and the root of the mount"
    until(lambda: helpers(mounted) == [], "it ends")


@pytest.mark.parametrize("spawner", [False, True])
def test_one_that_is_killed_is_replaced(mounted: Mount, memory: Path, area: Path, *, spawner: bool) -> None:
    """Even if the spawner, which forks it, is killed too."""
    start_slow(mounted, memory, "slow")
    with watching(mounted, area / "watch", STATE) as watch:
        mounted.write("tasks/slow/control", "pause")
        watch.until(f"{STATE}:ATTRIB")
        killed = helpers(mounted) + [child_called(mounted.pid, "ktaskfs: spawner")] * spawner
        for each in killed:
            with contextlib.suppress(psutil.NoSuchProcess):  # ten seconds after the last change
                each.kill()
        until(lambda: all(map(has_ended, killed)), "they have ended")
        told = len(watch.text)
        mounted.write("tasks/slow/control", "resume")
        until(lambda: f"{STATE}:MODIFY" in watch.text[told:], "it is told")
    stop(mounted, "slow")
