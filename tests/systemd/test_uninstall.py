"""The remains after ktaskfs is removed from a machine: a separate machine, because other tests need the shared one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import ROOT
from tests.support.shell import run
from tests.systemd.machine import booted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.machine import Machine


@pytest.fixture
def used_machine(root: None) -> Iterator[Machine]:
    """With the service at work, which has done a task."""
    with booted() as machine:
        machine.until_mounted()
        machine.start_slow_task("used")
        machine.finish_task("used")
        yield machine


def test_uninstall_leaves_nothing(used_machine: Machine) -> None:
    machine = used_machine
    assert machine.run("systemctl", "disable", "--now", "ktaskfs.service").status == 0
    find = ["find", "/etc", "/usr", "/var/lib", "-xdev", "-iname", "*ktask*", "-not", "-path", f"{ROOT}/*"]
    assert "/usr/sbin/ktaskfs\n" in machine.out(*find)
    done = run(sys.executable, str(ROOT / "packaging/install.py"), "uninstall", "/usr", str(machine.root))
    assert done.status == 0, done.err
    assert machine.out(*find) == ""
    assert machine.daemons() == []
