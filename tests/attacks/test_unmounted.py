"""After umount(8) the daemon ends, whoever still has the mount in a namespace of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.shell import run

if TYPE_CHECKING:
    from tests.attacks.conftest import Attack
    from tests.conftest import MountMaker


def test_a_mount_namespace_of_a_user_does_not_keep_the_daemon(mount_maker: MountMaker, attack: Attack) -> None:
    mount = mount_maker("mode=0666")
    attack("never.py", "namespace", str(mount.path))
    assert run("umount", str(mount.path)).status == 0
    assert mount.process.wait(5) == 0
    assert mount_maker(statedir=mount.statedir).read("version")
