"""Nobody can keep inotify(7) from reporting changes to others, and nobody gets reports of hidden files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.inotify import watching
from tests.support.poll import until
from tests.support.slow import start_slow, stop

if TYPE_CHECKING:
    from tests.attacks.conftest import Attack
    from tests.conftest import MountMaker
    from tests.support.users import User

STATE = "tasks/hers/state"


@pytest.mark.parametrize(("held", "who"), [(".", "victim"), ("info", "root"), ("tasks/", "victim"), ("tasks/", "root")])
def test_a_listing_that_hangs(
    mount_maker: MountMaker,
    memory: Path,
    area: Path,
    attack: Attack,
    attacker: User,
    victim: User,
    held: str,
    who: str,
) -> None:
    """Another process waits for the same lock, exclusively."""
    mount = mount_maker("mode=0666")
    user = victim if who == "victim" else None
    start_slow(mount, memory, "hers", user=user)
    told = {f"{STATE}:MODIFY", f"{STATE}:ATTRIB"} | (set() if user else {"info/tasks:MODIFY"})
    with watching(mount, area / "watch", *{each.partition(":")[0] for each in told}, user=user) as watch:
        attack("never.py", "getdents", str(mount.path / held))
        if held == "tasks/":
            change = attack.begin(mount, "exec mkdir tasks/none", user=attacker)
            until(lambda: Path(f"/proc/{change.pid}/stat").read_text().rpartition(") ")[2][0] == "D", "mkdir waits")
        assert attack.answered(mount, "echo pause > tasks/hers/control", user=user)
        watch.until(*told)
    attack.end()
    stop(mount, "hers", user=user)


@pytest.mark.parametrize("hidepid", [0, 2])
def test_the_inode_that_all_views_share_is_for_those_alone_who_may_read_it(
    mount_maker: MountMaker, attacker: User, victim: User, hidepid: int
) -> None:
    mount = mount_maker(f"mode=0666,hidepid={hidepid}")
    assert mount.shell("mkdir tasks/hers", user=victim).status == 0
    assert mount.shell(f"cat {STATE}", user=victim).out == "new\n"
    assert mount.shell(f"cat {STATE}", user=attacker).errname == ("ENOENT" if hidepid == 2 else "EACCES")
    into = ["setpriv", f"--reuid={attacker.uid}", f"--regid={victim.gid}", "--clear-groups"]
    reached = mount.shell(f"cd tasks/hers && exec {' '.join(into)} cat state")
    assert (reached.out, reached.errname) == (("new\n", None) if hidepid == 0 else ("", "EACCES"))
