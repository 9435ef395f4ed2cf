"""Small attacks, and callers in odd places."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.shell import shell

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.users import User


def test_a_caller_whose_directory_is_on_a_filesystem_of_its_own(
    mount_maker: MountMaker, memory: Path, two_users: tuple[User, User]
) -> None:
    user, _ = two_users
    mounted = mount_maker("mode=0666")
    own = mount_maker(user=user)  # without allow_other: root may not look into it
    script = 'cd "$1" && echo "fallocate path=$3/f length=64K name=t" > "$2/tasks/control"'
    outcome = shell(script, str(own.path), str(mounted.path), str(memory), user=user)
    assert outcome.status == 0, outcome.err + mounted.read("info/last_cmd_status", user=user)
    assert mounted.read("tasks/t/wait", user=user).endswith("done\n")
