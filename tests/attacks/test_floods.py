"""Any number of one user's requests takes only one turn each from other users."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.forked import run_forked

if TYPE_CHECKING:
    from tests.attacks.conftest import Attack
    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

TIMES = 100
ROUNDS = 3
"""Of which the best counts: while the victim itself does not run, the attacker goes on."""
OF_THE_OTHER = 40
"""Answers to the attacker while the victim reads a file once. With turns there are some five, without them 200."""


def calls_meanwhile(attack: Attack, mount: Mount, user: User) -> float:
    """Answers to the attacker for each time that ``user`` opens, reads and closes a file."""
    path = mount.path / "version"

    def read() -> int:
        os.setgroups([])
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        return sum(len(path.read_bytes()) > 0 for _ in range(TIMES))

    def calls_in_a_round() -> int:
        before = attack.calls()
        assert run_forked(read) == TIMES
        return attack.calls() - before

    return min(calls_in_a_round() for _ in range(ROUNDS)) / TIMES


@pytest.mark.parametrize("file", ["version", "metrics"])
def test_a_flood_of_openings(mount_maker: MountMaker, attack: Attack, victim: User, file: str) -> None:
    mount = mount_maker("mode=0666")
    attack("flood.py", "open", str(mount.path / file), "800")
    assert calls_meanwhile(attack, mount, victim) < OF_THE_OTHER


def test_a_flood_of_readers_who_wait(mount_maker: MountMaker, attack: Attack, attacker: User, victim: User) -> None:
    mount = mount_maker("mode=0666")
    assert mount.shell("mkdir tasks/mine", user=attacker).status == 0
    attack("flood.py", "hold", str(mount.path / "tasks/mine/wait"), "4500")
    assert attack.answered(mount, "cat version && mkdir tasks/yours && head -c 1 tasks/yours/wait", user=victim)
