"""``ktaskfs run`` where a task of that name exists, or a file is in the way: what it advises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

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


@pytest.mark.parametrize("way", ["join", "resume", "rerun"])
@pytest.mark.parametrize("state", ["done", "at work"])
def test_nobody_joins_the_task_of_another_user(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User], way: str, state: str
) -> None:
    """It may have worked on another file, if that user's root directory is another one."""
    command, user = Command(mount_maker("mode=0666")), two_users[0]
    (memory / "file").chmod(0o666)
    spec = f"clear path={memory}/file name=scrub"
    slowly = " rate_max=1 chunk=4K" if state == "at work" else ""
    assert command.mount.write("tasks/control", spec + slowly, user=user) == (0, None)
    if state == "done":
        command.mount.cat("tasks/scrub/wait", user=user)
    outcome = command("run", "--detach", "--if-exists", way, spec)
    assert (outcome.status, outcome.out) == (1, "")
    assert "scrub exists" in outcome.err
    command.mount.write("tasks/control", "cancel", user=user)
    command.mount.cat("tasks/scrub/wait", user=user)
