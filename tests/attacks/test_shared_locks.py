"""A lock that one user holds in the kernel, by a buffer that never arrives, delays nobody else."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.poll import DEADLINE, until

if TYPE_CHECKING:
    from tests.attacks.conftest import Attack
    from tests.conftest import MountMaker
    from tests.support.users import User


def target(memory: Path) -> str:
    file = memory / "target"
    file.write_bytes(b"x" * 65536)
    file.chmod(0o666)
    return str(file)


@pytest.mark.parametrize("who", ["victim", "root"])
def test_a_write_that_hangs_keeps_nobody_from_starting_tasks(
    mount_maker: MountMaker, memory: Path, attack: Attack, victim: User, who: str
) -> None:
    mount = mount_maker("mode=0666")
    user = victim if who == "victim" else None
    attack("never.py", "write", str(mount.path / "tasks/control"))
    assert attack.answered(mount, 'echo "clear path=$1" > tasks/control', target(memory), user=user)


@pytest.mark.parametrize("who", ["victim", "root"])
def test_a_write_that_hangs_keeps_nobody_from_clearing_their_errors(
    mount_maker: MountMaker, attack: Attack, victim: User, who: str
) -> None:
    mount = mount_maker("mode=0666")
    attack("never.py", "write", str(mount.path / "info/error_log"))
    assert attack.answered(mount, "echo clear > info/error_log", user=victim if who == "victim" else None)


def test_a_write_that_hangs_in_a_task_of_ones_own_does_not_keep_root_from_ending_it(
    mount_maker: MountMaker, memory: Path, attack: Attack, attacker: User
) -> None:
    mount = mount_maker("mode=0666")
    spec = f"clear path={target(memory)} name=mine rate_max=1 chunk=1K"
    assert mount.write("tasks/control", spec, user=attacker) == (0, None)
    attack("never.py", "write", str(mount.path / "tasks/mine/control"))
    assert attack.answered(mount, "echo kill > tasks/mine/control")


@pytest.mark.parametrize("command", ["ls tasks", "mkdir tasks/new", "ls tasks/there"])
@pytest.mark.parametrize("who", ["victim", "root"])
def test_a_listing_of_the_tasks_that_hangs_keeps_nobody_from_them(
    mount_maker: MountMaker, memory: Path, attack: Attack, attacker: User, victim: User, who: str, command: str
) -> None:
    mount = mount_maker("mode=0666")
    assert attack.answered(mount, 'echo "clear path=$1 name=there" > tasks/control', target(memory))
    attack("never.py", "getdents", str(mount.path / "tasks/"))
    # One who wants to change the directory waits, and makes all later readers wait behind him.
    change = attack.begin(mount, "exec mkdir tasks/none", user=attacker)
    until(lambda: Path(f"/proc/{change.pid}/stat").read_text().rpartition(") ")[2][0] == "D", "mkdir waits")
    assert attack.answered(mount, command, user=victim if who == "victim" else None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_listing_that_hangs_keeps_no_daemon_from_its_end(
    mount_maker: MountMaker, memory: Path, attack: Attack, number: signal.Signals
) -> None:
    """Meanwhile the daemon drops a task; then a successor with its state mounts at once."""
    mount = mount_maker("mode=0666,keep_finished=0")
    events = os.open(mount.path / "events", os.O_RDONLY)
    assert attack.answered(mount, "ls tasks; cat tasks/control")
    attack("never.py", "getdents", str(mount.path / "tasks/"))
    assert attack.answered(mount, 'echo "clear path=$1 name=t" > tasks/control; cat tasks/t/state; :', target(memory))
    while b" done" not in os.read(events, 65536):
        pass
    os.close(events)
    mount.process.send_signal(number)
    try:
        mount.process.wait(DEADLINE)
        assert mount_maker(statedir=mount.statedir).read("version")
    finally:
        attack.end()
        mount.kill()
