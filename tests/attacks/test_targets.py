"""A user changes the path of tasks while they start: no task accesses more than its user may."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.poll import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.attacks.conftest import Attack
    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

SECRET = b"secret" * 1000
OWN = b"own" * 1000
EACH = 3
"""Required number of each outcome."""


@pytest.fixture
def place(memory: Path, attacker: User) -> Path:
    """A directory of the attacker's with a file ``own`` and a directory ``there``, beside a directory of root's."""
    place, roots = memory / "place", memory / "roots"
    for directory, text, uid in ((place, OWN, attacker.uid), (place / "there", OWN, attacker.uid), (roots, SECRET, 0)):
        directory.mkdir(mode=0o700 if uid == 0 else 0o755)
        (directory / "own").write_bytes(text)
        (directory / "own").chmod(0o600)
        for path in (directory, directory / "own"):
            os.chown(path, uid, uid)
    return place


def begin_again_and_again(mount: Mount, spec: str, attacker: User, refusal: str) -> None:
    """Start tasks until ``EACH`` have begun and ``EACH`` were refused; no start ends otherwise."""
    seen = {(0, None): 0, (1, refusal): 0}

    def enough() -> bool:
        seen[mount.write("tasks/control", spec, user=attacker)] += 1
        return min(seen.values()) >= EACH

    until(enough, "both outcomes have been seen")
    until(lambda: "ing" not in mount.shell("cat tasks/*/state").out, "all have ended")


@pytest.mark.parametrize("what", ["the file", "a directory above"])
def test_a_link_that_leads_to_a_closed_file_now_and_then(
    mount_maker: MountMaker, place: Path, attack: Attack, attacker: User, what: str
) -> None:
    mount = mount_maker("mode=0666")
    secret, link = place.parent / "roots/own", place / "link"
    if what == "the file":
        attack("flip.py", str(link), str(place / "own"), str(secret))
    else:
        attack("flip.py", str(link), str(place / "there"), str(secret.parent))
        link /= "own"
    begin_again_and_again(mount, f"fill path={link} pattern=ff", attacker, "EACCES")
    assert secret.read_bytes() == SECRET
    begin_again_and_again(mount, f"copy source={link} path={place}/stolen", attacker, "EACCES")
    assert b"secret" not in (place / "stolen").read_bytes()


@pytest.mark.parametrize("other", ["fifo", "/dev/null"])
def test_a_link_that_leads_to_no_regular_file_now_and_then(
    mount_maker: MountMaker, place: Path, attack: Attack, attacker: User, other: str
) -> None:
    mount = mount_maker("mode=0666")
    os.mkfifo(place / "fifo")
    (place / "fifo").chmod(0o666)
    attack("flip.py", str(place / "link"), str(place / "own"), str(place / other))
    begin_again_and_again(mount, f"clear path={place}/link", attacker, "EINVAL")
    assert (place / "own").read_bytes() == bytes(len(OWN))
