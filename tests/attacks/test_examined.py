"""A process makes a look at its descriptors hang for ever: /proc/PID/fdinfo waits for the lock of epoll(7)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.poll import until
from tests.support.refusals import refusal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.attacks.conftest import Attack
    from tests.conftest import MountMaker
    from tests.support.users import User


def test_it_keeps_no_thread_of_the_daemon(mount_maker: MountMaker, attack: Attack, victim: User) -> None:
    mount = mount_maker("mode=0666")
    attack("never.py", "epoll", str(mount.path / "info/error_log"))
    assert attack.answered(mount, "cat metrics", user=victim)


def test_it_keeps_no_worker_that_searches_for_holders(mount_maker: MountMaker, memory: Path, attack: Attack) -> None:
    mount = mount_maker("mode=0666")
    attack("never.py", "epoll", str(mount.path / "info/error_log"))
    target = memory / "target"
    target.write_bytes(bytes(4096))
    with target.open("rb"):
        refused = refusal(mount, lambda spec: mount.shell('echo "$1" > tasks/control', spec), f"clear path={target}")
    assert refused.errname == "EBUSY"

    def has_worker() -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            return any("ktask/" in each.name() for each in psutil.Process(mount.pid).children(recursive=True))
        return True

    until(lambda: not has_worker(), "the worker has ended")


@pytest.mark.parametrize(
    ("file", "text"), [("tasks/control", "clear path=/none queue=1\n"), ("holders", "")], ids=["queued", "holders"]
)
def test_a_root_directory_that_does_not_answer(
    mount_maker: MountMaker, area: Path, attack: Attack, attacker: User, victim: User, file: str, text: str
) -> None:
    mount = mount_maker("mode=0666,max_tasks=1")
    assert mount.shell("mkdir tasks/mine", user=attacker).status == 0  # so that the next one is queued
    point = area / "point"
    point.mkdir()
    view = mount.path / "users" / str(attacker.uid)
    attack("silent.py", str(attacker.uid), str(point), str(view), file, *([text] if text else []), as_root=True)
    assert attack.answered(mount, "cat version", user=victim)
