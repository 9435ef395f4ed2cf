"""A wall clock that is set back, as by an administrator or a first answer of NTP, while tasks are at work."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.poll import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount

MIB = 1 << 20
pytestmark = pytest.mark.parametrize("tmpfs", ["huge=never"], indirect=True)


CLOCK = """
import time

real = time.time_ns

def time_ns():
    with open({file!r}) as file:
        return real() + int(file.read()) * 3600 * 10**9

time.time_ns, time.time = time_ns, lambda: time_ns() / 1e9
"""
"""Imported by Python at its start (site): the machine has only one wall clock, which others use."""


@pytest.fixture
def clock(area: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the hours by which the wall clock of daemons that start later is wrong."""
    file = area / "clock"
    file.write_text("0")
    (area / "site").mkdir()
    (area / "site/sitecustomize.py").write_text(CLOCK.format(file=str(file)))
    monkeypatch.setenv("PYTHONPATH", str(area / "site"))
    return file


def hour(mount: Mount, task: str) -> str:
    """When the task was made, to the hour."""
    found = re.search(r"^Created:\t(\S+ \d\d):", mount.read(f"tasks/{task}/status"), re.MULTILINE)
    assert found is not None
    return found[1]


def test_set_back_while_a_task_is_at_work(mount_maker: MountMaker, clock: Path, tmpfs: Path) -> None:
    mounted = mount_maker()
    spec = f"fallocate path={tmpfs}/f length=64M rate_max=1M chunk=128K name=first"
    assert mounted.write("tasks/control", spec) == (0, None)
    clock.write_text("-3")
    assert mounted.write("tasks/control", f"fallocate path={tmpfs}/g length=1M name=second") == (0, None)
    assert mounted.read("tasks/second/wait").splitlines()[-1] == "done"
    assert hour(mounted, "first") > hour(mounted, "second"), "the clock was not set back"

    until(lambda: int(mounted.read("tasks/first/progress").split()[0]) > MIB, "the work goes on")
    assert mounted.write("tasks/first/rate_max", "max") == (0, None)
    lines = mounted.read("tasks/first/wait").splitlines()
    assert lines[-1] == "done"
    assert not any("-" in re.sub(r"^\[.*?\]", "", line) for line in lines), "a negative speed or time"
    stat = dict(line.split(" ", 1) for line in mounted.read("tasks/first/stat").splitlines())
    assert 0 < int(stat["elapsed_usec"]) < 600e6
    assert mounted.write("debug/ktask_keep_finished", "1") == (0, None)
    assert "second" not in mounted.shell("ls tasks").out, "what ended first goes first, whatever the clock said"


def test_set_back_between_two_daemons(mount_maker: MountMaker, clock: Path, tmpfs: Path) -> None:
    first = mount_maker()
    spec = f"fallocate path={tmpfs}/f length=64M rate_max=64K chunk=128K name=t"
    assert first.write("tasks/control", spec) == (0, None)
    until(lambda: first.read("tasks/t/state") == "running\n", "the task is at work")
    first.kill()
    clock.write_text("-3")
    second = mount_maker(statedir=first.statedir)
    known = second.read("tasks/t/state") == "running\n"
    assert known, second.read("tasks/t/error") + "the worker was known by its start, not by the wall clock"
    assert second.write("tasks/control", f"fallocate path={tmpfs}/g length=1M name=later") == (0, None)
    assert hour(second, "t") > hour(second, "later"), "the clock was not set back"
    assert second.write("tasks/t/rate_max", "max") == (0, None)
    assert second.read("tasks/t/wait").splitlines()[-1] == "done"
