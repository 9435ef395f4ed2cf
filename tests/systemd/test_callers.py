"""Callers that systemd runs: the main job from scopes and services with different settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.support.hugepages import reserved
from tests.support.poll import until
from tests.support.shell import Outcome
from tests.systemd.machine import SLOWLY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.machine import Machine

UNITS: Final = ("ktaskfs.service", "ktaskfs-confined.service")
HUGE: Final = 2 << 20
PAGES: Final = 20
JOB: Final = f"""
echo 'fallocate path=/dev/hugepages/a length={PAGES * HUGE} name=a' > /run/ktaskfs/tasks/control || exit
tail -n 1 /run/ktaskfs/tasks/a/wait
rmdir /run/ktaskfs/tasks/a
stat -c '%U %b' /dev/hugepages/a
rm /dev/hugepages/a
"""
SETTINGS: Final = {
    "scope": ("--scope", "--property=MemoryMax=256M"),
    "service": ("--pipe", "--wait", "--property=MemoryMax=256M", "--property=TasksMax=64"),
    "sandbox": (
        *("--pipe", "--wait", "--property=ProtectSystem=strict", "--property=PrivateTmp=yes"),
        *("--property=NoNewPrivileges=yes", "--property=PrivateDevices=no", "--property=ReadWritePaths=/dev/hugepages"),
        *("--property=ProtectKernelTunables=yes", "--property=ProtectControlGroups=yes", "--property=ProtectHome=yes"),
    ),
}


@pytest.fixture(scope="module")
def service(machine: Machine) -> Iterator[Machine]:
    """The machine with the service at work, and huge pages."""
    with reserved(HUGE, 2 * PAGES):
        mount = "mount -t hugetlbfs -o pagesize=2M,mode=1777 none /dev/hugepages"
        machine.start(UNITS[0])
        assert machine.sh(mount).status == 0
        yield machine
        assert machine.run("umount", "/dev/hugepages").status == 0


@pytest.mark.parametrize("user", ["root", "ann"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_main_job(service: Machine, settings: str, user: str) -> None:
    as_user = ["runuser", "-u", user, "--"]  # of a scope, --uid= keeps root's groups
    command = ["systemd-run", "--quiet", *SETTINGS[settings], *as_user, "bash", "-c", JOB]
    assert service.run(*command) == Outcome(0, f"done\n{user} {PAGES * HUGE // 512}\n", "")


START: Final = f"fallocate path=/dev/shm/slow length=64M {SLOWLY} name=slow"


def start_in_a_unit(machine: Machine) -> None:
    """A service that starts a task and stays."""
    script = f"echo '{START}' > /run/ktaskfs/tasks/control && exec sleep infinity"
    command = ["systemd-run", "--quiet", "--unit=caller", "bash", "-c", script]
    assert machine.run(*command).status == 0
    until(lambda: machine.sh("grep -q '^done [1-9]' /run/ktaskfs/tasks/slow/stat").status == 0, "a chunk is done")


def finish(machine: Machine) -> None:
    """The task is done in the end; it leaves nothing."""
    script = "cd /run/ktaskfs/tasks/slow && echo max > rate_max && tail -n 1 wait"
    assert machine.sh(script) == Outcome(0, "done\n", "")
    assert machine.sh("rmdir /run/ktaskfs/tasks/slow; rm /dev/shm/slow").status == 0


@pytest.mark.parametrize("unit", UNITS)
def test_a_task_is_interrupted_when_its_callers_unit_stops(service: Machine, unit: str) -> None:
    """The worker is in the control group of the unit, and systemd ends all of its processes."""
    service.start(unit)
    service.until_mounted()
    start_in_a_unit(service)
    (worker,) = service.workers()
    assert service.out("cat", f"/proc/{worker}/cgroup").endswith("/system.slice/caller.service\n")
    assert service.run("systemctl", "stop", "caller").status == 0
    assert service.sh("tail -n 1 /run/ktaskfs/tasks/slow/wait").out == "interrupted\n"
    assert "SIGTERM" in service.out("cat", "/run/ktaskfs/tasks/slow/error")
    resume = service.sh("echo resume > /run/ktaskfs/tasks/slow/control")
    assert resume == Outcome(0, "", ""), service.out("cat", "/run/ktaskfs/info/last_cmd_status")
    finish(service)


@pytest.mark.parametrize("unit", UNITS)
def test_a_worker_sees_its_limits_and_can_write_to_no_control_group(service: Machine, unit: str) -> None:
    service.start(unit)
    service.until_mounted()
    start_in_a_unit(service)
    (worker,) = service.workers()
    script = f"""
    for fd in /proc/{worker}/fd/*; do
        if [ -e $fd/cgroup.procs ]; then echo seen; ! test -w $fd/cgroup.procs || echo $fd; fi
    done | sort -u
    """
    assert service.sh(script) == Outcome(0, "seen\n", "")
    assert service.run("systemctl", "stop", "caller").status == 0
    assert service.sh("tail -n 1 /run/ktaskfs/tasks/slow/wait; rmdir /run/ktaskfs/tasks/slow").status == 0
    more = "echo 'fallocate path=/dev/shm/slow length=100M' > /run/ktaskfs/tasks/control"
    limited = ("systemd-run", "--quiet", "--scope", "--property=MemoryMax=64M", "bash", "-c", more)
    assert service.run(*limited).errname == "ENOMEM"
    assert service.run("rm", "/dev/shm/slow").status == 0


def test_with_cgroup_daemon_a_task_outlives_its_callers_unit(service: Machine) -> None:
    service.start(UNITS[0])
    service.until_mounted()
    tunable = "/run/ktaskfs/debug/ktask_cgroup"
    assert service.sh(f"echo daemon > {tunable}").status == 0
    try:
        start_in_a_unit(service)
        (worker,) = service.workers()
        assert service.run("systemctl", "stop", "caller").status == 0
        assert service.workers() == {worker}
        finish(service)
    finally:
        assert service.sh(f"echo caller > {tunable}").status == 0
