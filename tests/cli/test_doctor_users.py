"""What ``ktaskfs doctor`` says to a user about the own rights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.support.daemon import ROOT
from tests.support.poll import until
from tests.support.shell import run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.cli.conftest import Command
    from tests.conftest import MountMaker
    from tests.support.users import User


def mends_of_access(words: Sequence[str], where: Path) -> list[str]:
    """What the doctor advises about access, once the daemon answers: after five seconds it does without."""
    found: list[str] = []

    def are_looked_for() -> bool:
        outcome = run(*words, cwd=where)
        assert outcome.status == 1
        checks = [json.loads(line) for line in outcome.out.splitlines()]
        found[:] = [each["mend"] for each in checks if each["check"] == "access"]
        return found != []

    until(are_looked_for, "the daemon answers")
    return found


def test_who_may_not_start_tasks(
    command: Command, mount_maker: MountMaker, two_users: tuple[User, User], public_root: Path
) -> None:
    user = two_users[0]
    advice = "umount {0} && ktaskfs mount -o gid=ktask,mode=0660 {0}  # and with its other options"
    for mount, gid, mend in (
        (command.mount, user.gid, advice),
        (mount_maker("gid=1"), user.gid, f"usermod --append --groups daemon {user.name}"),
        (mount_maker("gid=1,mode=0600"), user.gid, advice),
        (mount_maker(f"gid={user.gid}"), 1, f"newgrp {user.name}  # or log in again"),  # a process with older groups
    ):
        words = command.words("doctor", "--json")
        words[5] = str(mount.path)
        as_user = ("setpriv", f"--reuid={user.uid}", f"--regid={gid}", "--clear-groups")
        assert mends_of_access([*as_user, *words], public_root) == [mend.format(mount.path)]


def test_the_mount_of_another_user(command: Command, mount_maker: MountMaker, two_users: tuple[User, User]) -> None:
    path = mount_maker(user=two_users[0]).path
    outcome = run(*command.words("doctor")[:4], "-m", str(path), cwd=ROOT)
    assert outcome.err == ""
    assert f"unknown  mount: {path}/version: Permission denied\n" in outcome.out
