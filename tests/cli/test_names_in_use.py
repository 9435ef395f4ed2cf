"""``ktaskfs run`` where a task of that name exists, or a file is in the way: what it advises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.cli.conftest import Command
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.users import User


def test_only_an_own_task_can_be_joined(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User], public_root: Path
) -> None:
    command = Command(mount_maker("mode=0666"))
    words = ["run", "checksum", f"path={memory}/file", "name=theirs"]
    assert command(*words).status == 0
    refused = run(*command.words(*words), user=two_users[0], cwd=public_root)
    assert (refused.status, refused.err.splitlines()[0]) == (1, "ktaskfs: a task theirs exists: choose another name=")


def test_a_file_in_the_way_cannot_be_joined(command: Command, memory: Path) -> None:
    out = memory / "list"
    out.touch()
    refused = command("run", "checksum", f"path={memory}", "name=listed", f"out={out}")
    assert refused.err.splitlines()[0] == f"ktaskfs: {out} exists already; out must be a new file"
