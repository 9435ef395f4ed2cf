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

TIMES = 30
SLOWER = 100
"""A request may take so many times as long as before the flood. Without turns it takes some 600 times as long."""


def typical(mount: Mount, user: User) -> float:
    """How long ``user`` takes to open, read and close a file, in seconds; the median, as some wait for a processor."""
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
    before = typical(mount, victim)
    attack("flood.py", "open", str(mount.path / file), "800")
    assert typical(mount, victim) < before * SLOWER


def test_a_flood_of_readers_who_wait(mount_maker: MountMaker, attack: Attack, attacker: User, victim: User) -> None:
    mount = mount_maker("mode=0666")
    assert mount.shell("mkdir tasks/mine", user=attacker).status == 0
    before = typical(mount, victim)
    attack("flood.py", "hold", str(mount.path / "tasks/mine/wait"), "4500")
    assert typical(mount, victim) < before * SLOWER
