"""The mount of a service outlives its daemon: systemd keeps it, and the next daemon takes it over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.machine import Machine

UNITS = ("ktaskfs.service", "ktaskfs-confined.service")
POINT = "/run/ktaskfs"
BOUND = "/mnt/bound"


@pytest.fixture(params=UNITS)
def unit(machine: Machine, request: pytest.FixtureRequest) -> Iterator[str]:
    """One of the services, running, with its mount bound to another place; nothing of it remains."""
    name: str = request.param
    machine.run("systemctl", "stop", *UNITS)
    machine.run("systemctl", "reset-failed", *UNITS)
    started = machine.run("systemctl", "start", name)
    assert started.status == 0, started
    assert machine.sh(f"mkdir -p {BOUND} && mount --bind {POINT} {BOUND}").status == 0
    yield name
    machine.sh(f"umount -l {BOUND}; rm -rf /run/systemd/system/{name}.d; systemctl daemon-reload")
    machine.run("systemctl", "stop", name)


def until_another(machine: Machine, unit: str, before: str) -> None:
    """Another daemon is ready."""
    until(lambda: machine.show(unit, "MainPID") not in (before, "0"), "another daemon")
    until(lambda: machine.show(unit, "ActiveState") == "active", "a daemon that is ready")


def test_a_bind_mount_lives_on(machine: Machine, unit: str) -> None:
    """During kill -9, with a caller that waits for an answer, and a restart; the task goes on."""
    task = f"bound-{unit[:-8]}"
    machine.start_slow_task(task, mount=BOUND)
    workers = machine.workers()
    device = machine.out("stat", "-c", "%d", POINT)
    before = machine.show(unit, "MainPID")
    assert machine.sh(f"kill -9 {before}; cat {BOUND}/version").status == 0
    until_another(machine, unit, before)
    before = machine.show(unit, "MainPID")
    assert machine.run("systemctl", "restart", unit).status == 0
    until_another(machine, unit, before)
    assert machine.out("stat", "-c", "%d", POINT, BOUND).split() == [device.strip()] * 2
    assert machine.workers() == workers
    machine.finish_task(task, mount=BOUND)


def test_stop_ends_it_everywhere(machine: Machine, unit: str) -> None:
    assert machine.run("systemctl", "stop", unit).status == 0
    assert machine.show(unit, "Result") == "success"
    assert machine.out("ls", POINT) == ""
    assert machine.run("ls", BOUND).errname == "ENOTCONN"
    machine.start(unit)
    assert machine.is_mounted()


@pytest.mark.parametrize("unit", UNITS[:1], indirect=True)  # the other daemon has separate mounts
def test_umount_of_all_ends_the_service(machine: Machine, unit: str) -> None:
    assert machine.run("umount", BOUND).status == 0
    # Not while the daemon has a program look whether the mount answers.
    until(lambda: machine.run("umount", POINT).status == 0, "it is unmounted")
    until(lambda: machine.show(unit, "ActiveState") == "inactive", "the end of the service")
    assert machine.show(unit, "Result") == "success"
    assert machine.show(unit, "NFileDescriptorStore") == "0"
    machine.start(unit)
    assert machine.is_mounted()


def test_a_daemon_that_is_too_different_makes_a_new_mount(machine: Machine, unit: str) -> None:
    """The kernel's permanent cache would be wrong; the tasks exist anyway."""
    task = f"other-{unit[:-8]}"
    machine.start_slow_task(task, user="root")
    line = machine.out("grep", "^ExecStart=", f"/usr/lib/systemd/system/{unit}").strip()
    words = line.replace("mode=0660", "mode=0660,gid=0")
    script = f"mkdir -p /run/systemd/system/{unit}.d && printf '[Service]\\nExecStart=\\n%s\\n' '{words}'"
    assert machine.sh(f"{script} > /run/systemd/system/{unit}.d/other.conf && systemctl daemon-reload").status == 0
    before = machine.out("stat", "-c", "%d", POINT)
    restarted = machine.run("systemctl", "restart", unit)
    if unit == UNITS[0]:  # the other daemon cannot mount: systemd starts it once more
        assert (restarted.status, machine.show(unit, "NRestarts")) == (0, "0")
        children = f"grep -l '^PPid:.{machine.show(unit, 'MainPID')}$' /proc/[0-9]*/status | xargs grep -h ^State:"

        def only_the_spawner() -> bool:
            states = machine.sh(children).out
            return "sleeping" in states and "zombie" not in states

        until(only_the_spawner, "a spawner, and no dead child")
    until(lambda: machine.run("stat", "-c", "%d", POINT).out not in ("", before), "a new mount")
    machine.until_mounted()
    assert machine.show(unit, "NFileDescriptorStore") == "1"
    machine.until_logged("or other options", "-u", unit)
    assert machine.run("ls", BOUND).errname == "ENOTCONN"
    machine.finish_task(task, user="root")
