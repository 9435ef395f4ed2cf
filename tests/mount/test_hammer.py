"""Eight processes at once do anything at random: nothing hangs, nothing unforeseen happens, nothing stays behind.

KTASKFS_HAMMER_SECONDS makes it longer, KTASKFS_HAMMER_SEED another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import psutil

from tests.support.daemon import ROOT
from tests.support.poll import DEADLINE, until
from tests.support.resident import resident

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount

PROCESSES = 8
GROWTH_MAX = 24 << 20
"""Bytes that the daemon's memory may grow by: fragments and caches, not what thousands of tasks would leave."""


def hammered(mount: Mount, directory: Path, seconds: float, seed: int) -> Counter[str]:
    """The actions of all processes in ``seconds``; fails with the output of failed processes."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.hammer", str(mount.path), str(directory)]
            + [f"p{number}", str(seed + number), str(seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for number in range(PROCESSES)
    ]
    outcomes = []
    try:
        for process in processes:
            outcomes.append(process.communicate(timeout=seconds + 2 * DEADLINE))
    finally:
        for process in processes:
            process.kill()
    errors = [error for _, error in outcomes if error]
    assert not errors, "\n".join(errors)
    return sum((Counter(json.loads(out)) for out, _ in outcomes), Counter())


def gauge(mount: Mount, name: str) -> float:
    return next(float(line.split()[-1]) for line in mount.read("metrics").splitlines() if line.startswith(f"{name} "))


def test_nothing_hangs_and_nothing_is_left(mount_maker: MountMaker, memory: Path) -> None:
    seconds = float(os.environ.get("KTASKFS_HAMMER_SECONDS", "6"))
    seed = int(os.environ.get("KTASKFS_HAMMER_SEED", "1"))
    mount = mount_maker("max_tasks=1000")
    daemon = psutil.Process(mount.pid)
    hammered(mount, memory, 1, seed + PROCESSES)
    settle(mount)
    memory_before, descriptors = resident(mount.pid), daemon.num_fds()
    done = hammered(mount, memory, seconds, seed)
    assert min(done.values()) > 10, done
    assert len(done) == 14
    settle(mount)
    assert resident(mount.pid) - memory_before < GROWTH_MAX
    until(lambda: daemon.num_fds() <= descriptors, "its descriptors are closed")
    assert mount.shell("ls tasks").out == "control\n"
    assert list(mount.statedir.glob("*.page")) == []
    assert list(mount.statedir.glob("*.json")) == []


def settle(mount: Mount) -> None:
    """Wait until the daemon has let go of everything."""
    until(lambda: gauge(mount, "ktaskfs_open_handles") == 0, "everything is closed")
