"""A state directory in a place that somebody else can change: root's daemon writes and removes nothing there."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import TargetError
from ktaskfs.tasks.private_directory import PrivateDirectory
from ktaskfs.tasks.state_directory import StateDirectory
from tests.support.daemon import ROOT, interpreter
from tests.support.poll import until
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.users import User

SECRET = "keep me\n"


def mount(area: Path, statedir: Path) -> tuple[int, str]:
    """Status and words of a mount in the background, which logs into its state directory."""
    (area / "m").mkdir(exist_ok=True)
    command = [interpreter(ROOT), "-m", "ktaskfs.cli.main", "mount", "-o", f"statedir={statedir}", str(area / "m")]
    outcome = run(*command, cwd=ROOT)
    if outcome.status == 0:
        until(lambda: run("umount", str(area / "m")).status == 0, "what looks at the mount has ended")
    return outcome.status, outcome.err


@pytest.fixture
def secret(root: None, area: Path) -> Path:
    """A file that only root may read."""
    path = area / "secret"
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


def test_a_planted_link_as_the_log_overwrites_nothing(area: Path, secret: Path, two_users: tuple[User, User]) -> None:
    home = area / "home"
    (home / "state").mkdir(parents=True)  # made by root, below a directory of the user's, who renames it
    os.chown(home, two_users[0].uid, two_users[0].gid)
    script = 'cd "$1"; mv state away; mkdir state; ln -s "$2" state/log; ln -s "$2" state/lock; chmod 777 state'
    assert run("bash", "-c", script, "bash", str(home), str(secret), user=two_users[0]).status == 0
    status, words = mount(area, home / "state")
    assert status == 1
    assert f"they can write to {home}" in words
    assert secret.read_text() == SECRET
    status, words = mount(area, home / "state/deeper")
    assert (status, f"they can write to {home}" in words) == (1, True)
    assert os.listdir(home / "state") == ["log", "lock"] or sorted(os.listdir(home / "state")) == ["lock", "log"]


def test_a_link_as_the_state_directory_is_not_followed(area: Path, secret: Path, two_users: tuple[User, User]) -> None:
    precious = area / "precious"
    precious.mkdir(mode=0o700)
    for name in ("00000001.page", "00000002.json.new", "log"):
        (precious / name).write_text(SECRET)
    sticky = area / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    assert run("ln", "-s", str(precious), str(sticky / "state"), user=two_users[0]).status == 0
    for statedir in (sticky / "state", sticky / "state" / "deeper"):
        status, words = mount(area, statedir)
        assert (status, "symbolic links" in words) == (1, True), words
    assert {path.name: path.read_text() for path in precious.iterdir()} == dict.fromkeys(
        ("00000001.page", "00000002.json.new", "log"), SECRET
    )


def test_a_directory_of_ours_in_a_sticky_one_is_used(area: Path, secret: Path) -> None:
    sticky = area / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    assert mount(area, sticky / "new" / "state") == (0, "")
    assert stat.S_IMODE((sticky / "new").stat().st_mode) == 0o755
    assert stat.S_IMODE((sticky / "new/state").stat().st_mode) == 0o700


def test_a_directory_of_another_in_a_sticky_one_is_refused(
    area: Path, secret: Path, two_users: tuple[User, User]
) -> None:
    sticky = area / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    assert run("mkdir", str(sticky / "theirs"), user=two_users[0]).status == 0
    status, words = mount(area, sticky / "theirs/state")
    assert (status, f"they can write to {sticky}" in words) == (1, True)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_directory_above_that_others_may_write_is_refused(area: Path, mode: int) -> None:
    above = area / "above"
    (above / "state").mkdir(parents=True)
    above.chmod(mode)
    with pytest.raises(TargetError, match=f"write to {above}") as refusal:
        PrivateDirectory(str(above / "state"))
    assert refusal.value.errname == "EPERM"


def test_only_files_of_ours_are_opened_and_swept(area: Path, secret: Path, two_users: tuple[User, User]) -> None:
    path = area / "state"
    state = StateDirectory(PrivateDirectory(str(path)))
    try:
        os.symlink(secret, path / "00000001.page")
        os.mkfifo(path / "00000002.json.new")
        (path / "00000003.page").mkdir()
        (path / "00000004.page").write_text("")
        (path / "00000005.page").write_text("")
        os.chown(path / "00000005.page", two_users[0].uid, two_users[0].gid)
        (path / "x.page").write_text("")
        state.sweep_pages()
        assert sorted(os.listdir(path)) == sorted(
            ["00000001.page", "00000002.json.new", "00000003.page", "00000005.page", "lock", "x.page"]
        )
        for task in (1, 3, 5):
            with pytest.raises(OSError, match="Too many levels|Is a directory|not a regular file of this user"):
                state.open_page(task)
    finally:
        state.close()


def test_the_directory_stays_the_same_when_another_takes_its_name(area: Path) -> None:
    path = area / "state"
    directory = PrivateDirectory(str(path))
    path.rename(area / "away")
    path.mkdir()
    os.close(directory.open("file", os.O_WRONLY | os.O_CREAT))
    assert (os.listdir(area / "away"), os.listdir(path)) == (["file"], [])
    directory.close()
