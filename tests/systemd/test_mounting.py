"""mount(8), mount units and lines of /etc/fstab, under a real systemd; the service is not running."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.poll import until
from tests.support.shell import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.machine import Machine

POINT = "/run/ktaskfs"


@pytest.fixture
def idle(machine: Machine) -> Iterator[Machine]:
    """The machine without any ktaskfs, before and after."""
    machine.run("systemctl", "stop", "ktaskfs.service")
    yield machine
    machine.sh("umount --all --types fuse.ktaskfs; : > /etc/fstab; systemctl daemon-reload")
    until(lambda: machine.daemons() == [], "the end of every daemon")


def unmount(machine: Machine, where: str = POINT) -> None:
    """umount(8), and the daemon ends."""
    assert machine.run("umount", where).status == 0
    until(lambda: machine.daemons() == [], "the end of the daemon")


@pytest.mark.parametrize("kind", ["ktaskfs", "fuse.ktaskfs"])
def test_mount_by_hand(idle: Machine, kind: str) -> None:
    assert idle.run("mount", "-t", kind, "ktaskfs", POINT, "-o", "gid=ktask,mode=0620") == Outcome(0, "", "")
    assert idle.is_mounted()
    assert idle.out("stat", "-c", "%G %a", f"{POINT}/tasks/control") == "ktask 620\n"
    unmount(idle)


def test_without_an_environment(idle: Machine) -> None:
    outcome = idle.run("env", "-i", "/sbin/mount.ktaskfs", "none", POINT, "-o", "rw,nodev", "-nv", "-t", "ktaskfs")
    assert outcome == Outcome(0, "", "")
    assert idle.is_mounted()
    unmount(idle)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((POINT, "-o", "nosuch=1"), "ktaskfs: option 'nosuch=1': unknown option"),
        ((POINT, "-o", "gid=nobody here"), "ktaskfs: option 'gid=nobody here': there is no group 'nobody here'"),
        (("/no/where",), "No such file or directory"),
        ((POINT, "-N", "1"), "mount.ktaskfs: -N is not supported: use nsenter(1)"),
        ((POINT, "and", "more"), "usage: mount.ktaskfs"),
    ],
)
def test_what_fails_says_so_in_one_line(idle: Machine, arguments: tuple[str, ...], words: str) -> None:
    outcome = idle.run("/sbin/mount.ktaskfs", "ktaskfs", *arguments)
    assert outcome.status == 1
    assert outcome.err.count("\n") == 1
    assert words in outcome.err
    assert idle.run("mount", "-t", "ktaskfs", "ktaskfs", POINT, "-o", "nosuch").status != 0
    assert not idle.is_mounted()


def test_fake_mounts_nothing(idle: Machine) -> None:
    assert idle.run("mount", "-f", "-t", "ktaskfs", "ktaskfs", POINT).status == 0
    assert idle.run("/sbin/mount.ktaskfs", "ktaskfs", POINT, "-f", "-o", "gid=ktask").status == 0
    assert not idle.is_mounted()


def test_the_mount_unit(idle: Machine) -> None:
    idle.start("run-ktaskfs.mount")
    assert idle.is_mounted()
    idle.until_logged("mounted on /run/ktaskfs", "-u", "run-ktaskfs.mount")
    idle.start_slow_task("unit")
    workers = idle.workers()
    assert idle.run("systemctl", "stop", "run-ktaskfs.mount").status == 0
    until(lambda: idle.daemons() == [], "the end of the daemon")
    assert idle.workers() == workers
    idle.start("run-ktaskfs.mount")
    idle.finish_task("unit")
    assert idle.run("systemctl", "stop", "run-ktaskfs.mount").status == 0


def test_a_mount_unit_whose_daemon_was_killed(idle: Machine) -> None:
    idle.start("run-ktaskfs.mount")
    idle.start_slow_task("dead")
    assert idle.run("pkill", "--signal", "KILL", "--full", f"ktaskfs mount .*{POINT}").status == 0
    until(lambda: idle.run("ls", POINT).errname == "ENOTCONN", "the end of the connection")
    assert idle.run("systemctl", "restart", "run-ktaskfs.mount").status == 0
    idle.finish_task("dead")
    assert idle.run("systemctl", "stop", "run-ktaskfs.mount").status == 0


def fstab(machine: Machine, options: str, *, kind: str = "ktaskfs", where: str = "/mnt/k") -> None:
    (machine.root / "etc/fstab").write_text(f"ktaskfs {where} {kind} {options} 0 0\n")
    assert machine.run("systemctl", "daemon-reload").status == 0


@pytest.mark.parametrize("place", ["fstab", "unit"])
def test_a_dead_mount_gets_its_options_again_by_what_the_doctor_says(idle: Machine, place: str) -> None:
    """The task is only known in the state directory that the options name."""
    unit = idle.root / "etc/systemd/system/mnt-k.mount"
    options = "gid=ktask,mode=0660,statedir=/run/k-state"
    if place == "unit":
        unit.write_text(f"[Mount]\nWhat=ktaskfs\nWhere=/mnt/k\nType=ktaskfs\nOptions={options}\n")
        assert idle.run("systemctl", "daemon-reload").status == 0
    else:
        fstab(idle, f"noauto,{options}")
    try:
        idle.start("mnt-k.mount")
        idle.start_slow_task(f"by-{place}", mount="/mnt/k")
        assert idle.run("pkill", "--signal", "KILL", "--full", "ktaskfs mount .*/mnt/k").status == 0
        until(lambda: idle.run("ls", "/mnt/k").errname == "ENOTCONN", "the end of the connection")
        found = map(json.loads, idle.run("ktaskfs", "doctor", "--json", "-m", "/mnt/k").out.splitlines())
        (mend,) = [each["mend"] for each in found if each["check"] == "mount"]
        assert mend == ("systemctl restart /mnt/k" if place == "unit" else "mount /mnt/k")
        assert idle.sh(mend) == Outcome(0, "", "")
        idle.finish_task(f"by-{place}", mount="/mnt/k")
        unmount(idle, "/mnt/k")
    finally:
        unit.unlink(missing_ok=True)


@pytest.mark.parametrize("kind", ["ktaskfs", "fuse.ktaskfs"])
def test_a_line_of_fstab(idle: Machine, kind: str) -> None:
    fstab(idle, "defaults,gid=ktask,mode=0660,nofail,_netdev,x-systemd.requires-mounts-for=/run", kind=kind)
    idle.start("mnt-k.mount")
    assert idle.is_mounted("/mnt/k")
    assert idle.run("systemctl", "stop", "mnt-k.mount").status == 0
    until(lambda: idle.daemons() == [], "the end of the daemon")
    assert idle.run("mount", "--all") == Outcome(0, "", "")
    assert idle.is_mounted("/mnt/k")
    assert idle.run("mount", "--all") == Outcome(0, "", "")  # it knows its own
    unmount(idle, "/mnt/k")


def test_a_line_of_fstab_for_a_user(idle: Machine) -> None:
    assert idle.sh("install -d -o ann -g ann /home/ann /home/ann/k /tmp/ann-state").status == 0
    fstab(idle, "noauto,user,statedir=/tmp/ann-state", where="/home/ann/k")
    assert idle.run("mount", "/home/ann/k", user="ann") == Outcome(0, "", "")
    assert idle.run("cat", "/home/ann/k/version", user="ann").status == 0
    idle.start_slow_task("own", mount="/home/ann/k")
    idle.finish_task("own", mount="/home/ann/k")
    assert idle.run("fusermount3", "-u", "/home/ann/k", user="ann").status == 0
    until(lambda: idle.daemons() == [], "the end of the daemon")
