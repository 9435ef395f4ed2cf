"""Callers whose ids differ: a worker has one uid, one gid and no more rights than that user."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.attacks.callers import wait_for_worker
from tests.support.forked import run_forked
from tests.support.slow import stop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.users import User

IDS = {
    "a set-user-ID program": ("attacker", "victim", "victim"),
    "one that can go back": ("victim", "victim", "attacker"),
    "root for a while as a user": ("root", "victim", "root"),
    "a user who can become root": ("victim", "victim", "root"),
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
def test_a_worker_has_the_ids_of_the_access_alone(
    mount_maker: MountMaker, memory: Path, attacker: User, victim: User, ids: tuple[str, str, str]
) -> None:
    mount = mount_maker("mode=0666")
    (memory / "f").write_bytes(b"x" * 65536)
    os.chown(memory / "f", victim.uid, victim.gid)
    known = {"attacker": attacker.uid, "victim": victim.uid, "root": 0}
    chosen = [known[each] for each in ids]
    spec = f"clear path={memory}/f name=t rate_max=1 chunk=4K".encode()

    def write() -> int:
        os.setgroups([])
        os.setresgid(*chosen)
        os.setresuid(*chosen)
        return os.write(os.open(mount.path / "tasks/control", os.O_WRONLY), spec)

    assert run_forked(write) == len(spec)
    worker = wait_for_worker(mount, "t")
    with open(f"/proc/{worker}/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file)
    assert (status["Uid"], status["Gid"]) == ("\t".join([str(victim.uid)] * 4), "\t".join([str(victim.gid)] * 4))
    assert status["Groups"].split() in ([], [str(victim.gid)])
    assert (int(status["CapEff"], 16), status["NoNewPrivs"]) == (0, "1")

    def disturb() -> list[str]:
        os.setresuid(attacker.uid, attacker.uid, attacker.uid)
        attempts: dict[str, Callable[[], object]] = {
            "kill": lambda: os.kill(worker, signal.SIGKILL),
            "control": lambda: os.open(mount.path / "tasks/t/control", os.O_WRONLY),
            "memory": lambda: os.open(f"/proc/{worker}/mem", os.O_RDONLY),
        }
        gained = []
        for what, attempt in attempts.items():
            try:
                attempt()
                gained.append(what)
            except PermissionError:
                pass
        return gained

    assert run_forked(disturb) == []
    stop(mount, "t", user=victim)
