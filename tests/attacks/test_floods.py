"""One user's requests, however many, take from the others only a turn each."""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING

from tests.support.forked import run_forked

if TYPE_CHECKING:
    from tests.attacks.conftest import Attack
    from tests.conftest import MountMaker
    from tests.support.daemon import Mount
    from tests.support.users import User

TIMES = 100
LIMIT = 0.1
"""Seconds for an open, a read and a close in the middle of a flood: ten times what an idle machine takes at worst."""


def slowest(mount: Mount, user: User) -> float:
    """The 99th percentile of how long ``user`` takes to open, read and close a file, in seconds."""
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
    return max(took) if len(took) < TIMES else statistics.quantiles(took, n=100)[-1]


def test_a_flood_of_openings(mount_maker: MountMaker, attack: Attack, victim: User) -> None:
    mount = mount_maker("mode=0666")
    attack("flood.py", "open", str(mount.path / "metrics"), "800")
    assert slowest(mount, victim) < LIMIT


def test_a_flood_of_readers_who_wait(mount_maker: MountMaker, attack: Attack, attacker: User, victim: User) -> None:
    mount = mount_maker("mode=0666")
    assert mount.shell("mkdir tasks/mine", user=attacker).status == 0
    attack("flood.py", "hold", str(mount.path / "tasks/mine/wait"), "4500")
    assert slowest(mount, victim) < LIMIT
