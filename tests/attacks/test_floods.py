"""One user's requests, however many, take from the others only a turn each."""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.forked import run_forked

if TYPE_CHECKING:
    from tests.attacks.conftest import Attack
    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

TIMES = 100
LIMIT = 0.03
"""Seconds for an open, a read and a close in the middle of a flood; without turns it is twice as long at least. The
median counts: what a few take is up to the machine, which runs thousands of the attacker's threads."""


def typical(mount: Mount, user: User) -> float:
    """How long ``user`` takes to open, read and close a file, in seconds; the median."""
    path = mount.path / "version"

    def measure() -> list[float]:
        os.setgroups([])
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        took = []
        for _ in range(TIMES):
            begun = time.monotonic()
            path.read_bytes()
            took.append(time.monotonic() - begun)
            if sum(took) > 20:
                break
        return took

    took: list[float] = run_forked(measure)
    return statistics.median(took)


@pytest.mark.parametrize("file", ["version", "metrics"])
def test_a_flood_of_openings(mount_maker: MountMaker, attack: Attack, victim: User, file: str) -> None:
    mount = mount_maker("mode=0666")
    attack("flood.py", "open", str(mount.path / file), "800")
    assert typical(mount, victim) < LIMIT


def test_a_flood_of_readers_who_wait(mount_maker: MountMaker, attack: Attack, attacker: User, victim: User) -> None:
    mount = mount_maker("mode=0666")
    assert mount.shell("mkdir tasks/mine", user=attacker).status == 0
    attack("flood.py", "hold", str(mount.path / "tasks/mine/wait"), "4500")
    assert typical(mount, victim) < LIMIT
