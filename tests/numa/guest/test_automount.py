"""Mounts at the first access. They are tested in the virtual machine, because not every kernel has autofs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.systemd.test_mounting import POINT, fstab, idle

if TYPE_CHECKING:
    from tests.systemd.machine import Machine

__all__ = ["idle"]


def test_the_automount_unit(idle: Machine) -> None:
    idle.start("run-ktaskfs.automount")
    try:
        assert idle.daemons() == []
        assert "tasks" in idle.out("ls", POINT, user="bob").split()
        assert idle.is_mounted()
        idle.start_slow_task("auto")
        idle.finish_task("auto")
    finally:
        assert idle.run("systemctl", "stop", "run-ktaskfs.automount", "run-ktaskfs.mount").status == 0


def test_the_service_and_the_automount_exclude_each_other(idle: Machine) -> None:
    idle.start("run-ktaskfs.automount")
    idle.start("ktaskfs.service")
    assert idle.show("run-ktaskfs.automount", "ActiveState") == "inactive"
    assert idle.is_mounted()
    assert idle.run("systemctl", "stop", "ktaskfs.service").status == 0


def test_a_line_of_fstab_with_automount(idle: Machine) -> None:
    fstab(idle, "gid=ktask,noauto,x-systemd.automount,x-systemd.idle-timeout=1min")
    idle.start("mnt-k.automount")
    try:
        assert idle.run("cat", "/mnt/k/version", user="bob").status == 0
        assert idle.is_mounted("/mnt/k")
    finally:
        assert idle.run("systemctl", "stop", "mnt-k.automount", "mnt-k.mount").status == 0
