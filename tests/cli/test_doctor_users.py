"""What ``ktaskfs doctor`` says to a user about the own rights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.support.daemon import ROOT
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command
    from tests.conftest import MountMaker
    from tests.support.users import User


def test_who_may_not_start_tasks(
    command: Command, mount_maker: MountMaker, two_users: tuple[User, User], public_root: Path
) -> None:
    user, here = two_users[0], command.mount
    advice = f"umount {here.path} && ktaskfs mount -o gid=ktask,mode=0660 {here.path}  # and with its other options"
    for mount, gid, mend in (
        (here, user.gid, advice),
        (mount_maker("gid=1"), user.gid, f"usermod --append --groups daemon {user.name}"),
        (mount_maker(f"gid={user.gid}"), 1, f"newgrp {user.name}  # or log in again"),  # a process with older groups
    ):
        words = command.words("doctor", "--json")
        words[5] = str(mount.path)
        as_user = ("setpriv", f"--reuid={user.uid}", f"--regid={gid}", "--clear-groups")
        outcome = run(*as_user, *words, cwd=public_root)
        found = [json.loads(line) for line in outcome.out.splitlines()]
        assert outcome.status == 1
        assert [each["mend"] for each in found if each["check"] == "access"] == [mend]


def test_the_mount_of_another_user(command: Command, mount_maker: MountMaker, two_users: tuple[User, User]) -> None:
    path = mount_maker(user=two_users[0]).path
    outcome = run(*command.words("doctor")[:4], "-m", str(path), cwd=ROOT)
    assert outcome.err == ""
    assert f"unknown  mount: {path}/version: Permission denied\n" in outcome.out
