"""Files that others use, as a person meets them: with echo, cat and real workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.holding import used
from tests.support.memory_files import is_all, make_dirty

if TYPE_CHECKING:
    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

SIZE = 32 << 20

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def file(memory: Path) -> Path:
    """A tenant's memory."""
    make_dirty(memory / "vm0", SIZE)
    return memory / "vm0"


def test_scrubbing_after_a_tenant(mounted: Mount, file: Path) -> None:
    """Refused at the write while the guest runs; and once it has ended nothing has to be forced."""
    scrub = f"clear path={file} name=scrub"
    with used(file, "maps") as guest:
        assert mounted.write("tasks/control", scrub) == (1, "EBUSY")
        comm = Path(f"/proc/{guest.pid}/comm").read_text().strip()
        assert f"{file} is in use by {comm} ({guest.pid}): force=1" in mounted.read("info/last_cmd_status")
        assert is_all(0xFF, file, 0, SIZE)
    assert mounted.write("tasks/control", scrub) == (0, None)
    assert mounted.read("tasks/scrub/wait").splitlines()[-1] == "done"
    assert is_all(0, file, 0, SIZE)


def test_what_the_shell_itself_holds_counts(mounted: Mount, file: Path) -> None:
    script = 'exec 3<"$1"; echo "clear path=$1" > tasks/control'
    outcome = mounted.shell(script, str(file))
    assert (outcome.status, outcome.errname) == (1, "EBUSY")
    assert "in use by bash (" in mounted.read("info/last_cmd_status")


@pytest.mark.parametrize("ordinary", [False, True], ids=["root", "user"])
def test_several_tasks_on_one_file(
    mount_maker: MountMaker, two_users: tuple[User, User], file: Path, ordinary: bool
) -> None:
    """An ordinary user's workers do not see each other's descriptors; an invisible stranger counts all the same."""
    user = two_users[0] if ordinary else None
    mount = mount_maker("mode=0666")
    if user is not None:
        os.chown(file, user.uid, user.gid)
    slow = f"fill path={file} pattern=11 chunk=1M rate_max=256K max_threads=1 name=slow"
    assert mount.write("tasks/control", slow, user=user) == (0, None)
    for number in range(5):
        spec = f"clear path={file} offset={SIZE // 2} name=t{number}"
        assert mount.write("tasks/control", spec, user=user) == (0, None), mount.read("info/last_cmd_status", user=user)
        assert mount.read(f"tasks/t{number}/wait", user=user).splitlines()[-1] == "done"
    together = "".join(f"clear path={file} offset={SIZE // 2} name=p{number}\n" for number in range(8))
    assert mount.write_once("tasks/control", together, user=user) == (0, None), mount.read(
        "info/last_cmd_status", user=user
    )
    mount.write("tasks/slow/control", "cancel", user=user)
    assert mount.read("tasks/slow/wait", user=user).splitlines()[-1] == "cancelled"
    for number in range(8):
        assert mount.read(f"tasks/p{number}/wait", user=user).splitlines()[-1] == "done"
    with used(file, "maps") as guest:
        assert mount.write("tasks/control", f"free path={file}", user=user) == (1, "EBUSY")
        status = mount.read("info/last_cmd_status", user=user)
        assert ("held by a process that you cannot see" if ordinary else f"({guest.pid})") in status
        assert mount.write("tasks/control", f"free path={file} force=1 name=forced", user=user) == (0, None)
        assert mount.read("tasks/forced/wait", user=user).splitlines()[-1] == "done"
