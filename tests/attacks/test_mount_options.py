"""An ordinary user gains no rights by mount options or by the name of a mount point."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import interpreter
from tests.support.leftovers import none_left
from tests.support.poll import until
from tests.support.shell import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.shell import Outcome
    from tests.support.users import User

pytestmark = pytest.mark.usefixtures("fuse_for_all")


@pytest.fixture
def own(area: Path, two_users: tuple[User, User]) -> Path:
    """A directory of the user's, with one for a mount that is named like options, and one for its state."""
    own = area / "own"
    for path in (own, own / "m,dev,suid,allow_other", own / "state"):
        path.mkdir(mode=0o700)
        os.chown(path, two_users[0].uid, two_users[0].gid)
    return own


def mount(own: Path, options: str, public: Path, user: User | None, prefix: Sequence[str] = ()) -> Outcome:
    command = [interpreter(public), "-m", "ktaskfs.cli.main", "mount", "-o", options, str(point(own))]
    return run(*prefix, *command, cwd=public, user=user)


def point(own: Path) -> Path:
    return own / "m,dev,suid,allow_other"


@pytest.mark.parametrize("who", ["a user", "root"])
def test_no_option_and_no_name_makes_devices_and_programs_work(
    own: Path, public_root: Path, two_users: tuple[User, User], who: str
) -> None:
    user = two_users[0] if who == "a user" else None
    state = own / "state" if user else own.parent / "state"
    with none_left():
        outcome = mount(own, f"dev,suid,exec,user,statedir={state}", public_root, user)
        assert (outcome.status, outcome.err) == (0, "")
        lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        (options,) = [line[3].split(",") for line in lines if line[1] == str(point(own))]
        entered = run("ls", str(point(own))).status == 0
        until(lambda: run("umount", str(point(own))).status == 0, "what looks at the mount has ended")
    assert {"nosuid", "nodev", "noexec"} <= set(options)
    assert {"suid", "dev", "exec"}.isdisjoint(options)
    assert entered is ("allow_other" in options) is (user is None)


def test_other_users_are_let_in_only_where_root_allows_it(
    own: Path, area: Path, public_root: Path, two_users: tuple[User, User]
) -> None:
    """``user_allow_other`` of /etc/fuse.conf, which is empty here if there is one."""
    (area / "conf").touch()
    user = two_users[0]
    become = f"setpriv --reuid={user.uid} --regid={user.gid} --clear-groups"
    script = f'conf=/etc/fuse.conf; [ ! -e $conf ] || mount --bind "$0" $conf && exec {become} "$@"'
    prefix = ("unshare", "--mount", "bash", "-c", script, str(area / "conf"))
    with none_left():
        outcome = mount(own, f"allow_other,statedir={own}/state", public_root, None, prefix)
    assert outcome.status == 1
    assert "user_allow_other" in outcome.err


@pytest.mark.parametrize(
    "option", ["statedir={root}/state", "statedir={root}/new", "statedir={own}/link", "config={root}/conf"]
)
def test_nothing_of_roots_is_used_read_or_made(
    own: Path, area: Path, public_root: Path, two_users: tuple[User, User], option: str
) -> None:
    roots = area / "roots"
    (roots / "state").mkdir(parents=True)
    (roots / "conf").write_text("secret\n")
    (roots / "conf").chmod(0o600)
    (own / "link").symlink_to(roots / "state")
    options = f"statedir={own}/state,{option.format(root=roots, own=own)}"
    with none_left():
        outcome = mount(own, options, public_root, two_users[0])
    assert outcome.status == 1
    assert outcome.err.startswith("ktaskfs: ")
    assert "secret" not in outcome.err
    assert sorted(os.listdir(roots)) == ["conf", "state"]
    assert os.listdir(roots / "state") == []
