"""A user who starts tasks and endlessly stops or kills their workers delays nobody else, and leaves nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.attacks.test_shared_locks import target
from tests.support.poll import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.attacks.conftest import Attack
    from tests.conftest import MountMaker
    from tests.support.users import User

TASK = 'echo "clear path=$1 name=$2 force=1" > tasks/control && cat tasks/$2/wait | tail -n 1 | grep -qx done'
"""With force=1, because the guard of files in use finds the killed workers of the attacker, too."""


@pytest.mark.parametrize("number", ["SIGSTOP", "SIGKILL"])
def test_others_start_tasks_and_see_their_end(
    mount_maker: MountMaker, memory: Path, attack: Attack, attacker: User, victim: User, number: str
) -> None:
    """With SIGSTOP each of its ten writes takes more than a second: in one file they would hold everybody's."""
    mount = mount_maker("mode=0666")
    path = target(memory)
    descriptors = f"/proc/{mount.pid}/fd"
    assert attack.answered(mount, TASK, path, "before")
    before = len(os.listdir(descriptors))
    attack("own_workers.py", number, str(mount.path / "tasks/control"), path)
    for user in (victim, None):
        for turn in range(3):
            assert attack.answered(mount, TASK, path, f"of-{user and user.uid}-{turn}", user=user)
    attack.end()
    assert mount.shell("echo cancel > tasks/control", user=attacker).status == 0
    for task in mount.shell("grep -lxE 'running|starting' tasks/*/state | cut -d/ -f2").out.split():
        mount.shell("echo kill > tasks/$1/control", task)
    until(lambda: "ing" not in mount.shell("cat tasks/*/state").out, "all have ended")
    until(lambda: len(os.listdir(descriptors)) <= before, "the daemon holds nothing of them")
    until(lambda: mount.shell(f"pgrep -u {attacker.uid}").out == "", "no process of theirs is left")
