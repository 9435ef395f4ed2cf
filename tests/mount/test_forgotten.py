"""Descriptors that outlive the task they belong to."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from ktaskfs.control.limits import OPENINGS_MAX
from tests.support.poll import until
from tests.support.resident import resident
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

pytestmark = pytest.mark.usefixtures("patient")


def test_a_file_of_a_task_that_was_removed_gives_and_takes_nothing(mounted: Mount, memory: Path) -> None:
    task = mounted.path / "tasks/t"
    task.mkdir()
    names = [name for name in os.listdir(task) if name != "wait"]
    held = {name: os.open(task / name, os.O_RDWR if os.stat(task / name).st_mode & 0o200 else 0) for name in names}
    task.rmdir()
    assert {"control", "state", "length", "rate_max", "op"} <= held.keys()
    for name, fd in held.items():
        os.pread(fd, 100, 0)  # the text of the time of open(2)
        with pytest.raises(OSError, match="No such device") as refusal:
            os.pread(fd, 100, 0)
        assert refusal.value.errno == errno.ENODEV, name
    for name, text in (
        ("control", f"fallocate path={memory}/f length=1M"),
        ("control", "start"),
        ("op", "clear"),
        ("length", "1M"),
        ("rate_max", "1M"),
    ):
        with pytest.raises(OSError, match="No such device"):
            os.pwrite(held[name], text.encode(), 0)
    for fd in held.values():
        os.close(fd)
    assert os.listdir(memory) == []
    assert list(mounted.statedir.glob("*.json")) == []
    assert mounted.read("info/last_cmd_status").endswith("ENODEV: task t was removed\n")


def test_an_ended_task_that_was_removed_stays_so(mount_maker: MountMaker, memory: Path) -> None:
    mounted = mount_maker()
    assert mounted.write("tasks/control", f"fallocate path={memory}/f length=64K name=t") == (0, None)
    mounted.read("tasks/t/wait")
    script = "exec 3>tasks/t/rate_max 4>tasks/t/control; rmdir tasks/t; echo 1M >&3; echo resume >&4; ls tasks"
    assert mounted.shell(script).out == "control\n"
    assert mounted.shell("mkdir tasks/t; ls tasks").out == "control\nt\n"
    mounted.kill()
    again = mount_maker(statedir=mounted.statedir)
    assert (again.read("tasks/t/state"), again.shell("ls tasks").out) == ("new\n", "control\nt\n")


def test_waiting_for_a_task_that_is_removed_ends(mounted: Mount) -> None:
    script = "mkdir tasks/t; cat tasks/t/wait > $1 & while [ ! -s $1 ]; do :; done; rmdir tasks/t; wait $!"
    outcome = mounted.shell(script, str(mounted.statedir / "said"))
    assert (outcome.status, outcome.errname) == (1, "ENODEV")


def test_the_daemon_keeps_nothing_of_tasks_that_are_gone(mount_maker: MountMaker, memory: Path) -> None:
    mounted = mount_maker("keep_finished=2")
    (memory / "f").write_bytes(b"x" * 4096)
    script = """
        for n in $(seq $2); do
            echo "clear path=$1/f name=t$n" > tasks/control && tail -n 1 tasks/t$n/wait && cat tasks/t$n/* || exit
        done > /dev/null
    """
    assert mounted.shell(script, str(memory), "60").status == 0
    before = resident(mounted.pid)
    assert mounted.shell(script, str(memory), "120").status == 0
    # Each task has 20 files that the kernel knows; an object for each, in a dictionary, takes about 300 bytes.
    assert resident(mounted.pid) - before < 120 * 20 * 300
    assert mounted.shell("ls tasks").out.split() == ["control", "t119", "t120"]


def test_a_name_that_is_used_again_is_another_task(mount_maker: MountMaker, memory: Path) -> None:
    mounted = mount_maker("keep_finished=0")
    (memory / "f").write_bytes(b"x" * 4096)
    script = """
        for n in $(seq 30); do
            echo "clear path=$1/f name=again" > tasks/control || exit
            while [ -e tasks/again ]; do :; done
            mkdir tasks/again && [ "$(cat tasks/again/state)" = new ] && rmdir tasks/again || exit
        done
    """
    outcome = mounted.shell(script, str(memory))
    assert (outcome.status, outcome.err) == (0, "")


def test_many_open_files_of_one_user_are_no_others_problem(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]
) -> None:
    mounted = mount_maker("mode=0666")
    script = """
import os, sys
held = []
try:
    while True:
        held.append(os.open(sys.argv[1], os.O_WRONLY))
except OSError as error:
    print(error.errno, len(held), flush=True)
"""
    mine, other = two_users
    before = len(os.listdir(f"/proc/{mounted.pid}/fd"))
    outcome = run("python3", "-c", script, str(mounted.path / "tasks/control"), user=mine)
    assert outcome.out.split() == [str(errno.EMFILE), str(OPENINGS_MAX)]
    assert "control files open for writing" in mounted.read("info/last_cmd_status", user=mine)
    for user in (mine, other, None):
        spec = f"clear path={memory}/none"
        assert mounted.write("tasks/control", spec, user=user) == (1, "ENOENT")
    until(lambda: len(os.listdir(f"/proc/{mounted.pid}/fd")) < before + 10, "the daemon has let go of them")
