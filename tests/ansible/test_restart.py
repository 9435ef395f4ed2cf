"""The modules while the daemon is replaced, with a file of it open: even close(2) fails then."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.daemon import Mount
from tests.support.poll import DEADLINE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.ansible.conftest import Utilities
    from tests.conftest import MountMaker


STATE: Final = "/tasks/t/state"


@pytest.fixture(autouse=True)
def patience(utilities: Utilities, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer for the next daemon than a process may stall."""
    monkeypatch.setattr(utilities.mounted, "PATIENCE", 3 * DEADLINE)


def is_followed() -> bool:
    """Whether this process has the state open."""
    return any(os.path.realpath(f"/proc/self/fd/{each}").endswith(STATE) for each in os.listdir("/proc/self/fd"))


def test_who_waits_for_a_change_waits_on(mount_maker: MountMaker, utilities: Utilities, area: Path) -> None:
    mount = mount_maker(statedir=area / "kept")
    assert mount.shell("mkdir tasks/t").status == 0
    mounted = utilities.mounted.Mounted(str(mount.path))
    mounted.require()
    with ThreadPoolExecutor(1) as executor:
        state = executor.submit(mounted.wait_while, "t", ("new",), time.monotonic() + DEADLINE)
        until(is_followed, "the state is followed")
        mount.process.kill()
        mount.process.wait()
        again = Mount(mount.path, statedir=area / "kept", log=area / "again")
        try:
            assert again.shell("rmdir tasks/t").status == 0
            assert state.result(2 * DEADLINE) == utilities.mounted.ABSENT
        finally:
            again.close()
    mount.kill()


def test_a_daemon_that_stays_away_is_told_in_a_sentence(
    mount_maker: MountMaker, utilities: Utilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead daemon has no log to wait for."""
    mount = mount_maker()
    mounted = utilities.mounted.Mounted(str(mount.path))
    write = os.write

    def written_late(fd: int, data: bytes) -> int:
        mount.process.kill()
        mount.process.wait()
        return write(fd, data)

    monkeypatch.setattr(os, "write", written_late)
    begin = time.monotonic()
    with pytest.raises(
        utilities.mounted.Refused, match=f"^the daemon of {mount.path} ended during the command, which may"
    ):
        mounted.start({"op": "verify"})
    assert time.monotonic() - begin < 2 * DEADLINE
    monkeypatch.setattr(utilities.mounted, "PATIENCE", 0)
    with pytest.raises(utilities.mounted.Refused, match=f"^the daemon of {mount.path} does not answer: "):
        mounted.require()
    mount.kill()


def test_between_the_dead_mount_and_the_next_there_is_none(
    mount_maker: MountMaker, utilities: Utilities, area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look of a module sees the dead mount, the second one no mount, the third one the next daemon."""
    mount = mount_maker(statedir=area / "kept")
    mount.process.kill()
    mount.process.wait()
    again: list[Mount] = []

    def mount_again() -> None:
        again.append(Mount(mount.path, statedir=area / "kept", log=area / "again"))

    steps: Iterator[Callable[[], None]] = iter([mount.kill, mount_again])
    pauses = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: next(steps)())
    monkeypatch.setattr(utilities.mounted, "time", pauses)
    try:
        assert utilities.mounted.Mounted(str(mount.path)).is_there()
        assert len(again) == 1
    finally:
        for each in again:
            each.close()
    assert not utilities.mounted.Mounted(str(mount.path)).is_there()


def test_a_command_before_the_death_has_been_carried_out(
    mount_maker: MountMaker, utilities: Utilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer has come, and only the close(2) fails."""
    mount = mount_maker()
    assert mount.shell("mkdir tasks/t").status == 0
    write = os.write

    def written_last(fd: int, data: bytes) -> int:
        length = write(fd, data)
        mount.process.kill()
        mount.process.wait()
        return length

    monkeypatch.setattr(os, "write", written_last)
    utilities.mounted.Mounted(str(mount.path)).write("tasks/t/nice", "3")
    mount.kill()
