"""The first that is looked at after the boot."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.systemd.machine import Machine

UNIT = "ktaskfs.service"


def test_it_is_mounted_at_boot(machine: Machine) -> None:
    assert machine.show(UNIT, "ActiveState") == "active"
    assert machine.show(UNIT, "NRestarts") == "0"
    assert machine.is_mounted()
    assert machine.out("systemctl", "list-units", "--failed", "--no-legend", "*ktaskfs*") == ""
    assert machine.show("broken.service", "ActiveState") == "failed"
    assert machine.out("stat", "-c", "%G %a", "/run/ktaskfs/tasks/control") == "ktask 660\n"
