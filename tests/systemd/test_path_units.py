"""Path units of systemd on files of the mount."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.poll import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.machine import Machine

UNIT = "ktaskfs.service"
MOUNT = "/run/ktaskfs"
START = "fallocate path=/dev/shm/watched length=64M rate_max=1M chunk=1M name=watched"


@pytest.fixture
def service(machine: Machine) -> Iterator[Machine]:
    """The machine with the service and a task at work."""
    machine.start(UNIT)
    machine.until_mounted()
    assert machine.sh(f"echo '{START}' > {MOUNT}/tasks/control").status == 0
    until(lambda: machine.sh("pgrep --full '^ktaskfs: toucher'").status == 1, "watchers of earlier changes were told")
    yield machine
    cancel = f"cd {MOUNT}/tasks; echo cancel > watched/control; tail -n 1 watched/wait; rmdir watched"
    assert machine.sh(f"{cancel}; rm /dev/shm/watched").status == 0


@pytest.mark.parametrize("kind", ["PathChanged", "PathModified"])
@pytest.mark.parametrize("file", ["tasks/watched/state", "info/tasks"])
def test_a_change_of_state_starts_the_unit(service: Machine, kind: str, file: str) -> None:
    told = "/disk/told"
    watch = ["systemd-run", "--quiet", "--unit=watcher", f"--path-property={kind}={MOUNT}/{file}", "touch", told]
    assert service.run(*watch).status == 0
    try:
        assert service.show("watcher.path", "ActiveState") == "active"
        assert service.sh(f"test -e {told}").status == 1, "nothing has changed yet"
        assert service.sh(f"echo pause > {MOUNT}/tasks/watched/control").status == 0
        until(lambda: service.sh(f"test -e {told}").status == 0, "the unit ran")
    finally:
        service.run("systemctl", "stop", "watcher.path")
        service.sh(f"rm -f {told}")
