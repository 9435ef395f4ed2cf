"""Path units of systemd on files of the mount."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import ROOT
from tests.support.poll import until
from tests.support.shell import Outcome

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


def test_the_unit_of_the_page_hears_of_changes_after_a_boot(machine: Machine) -> None:
    """At boot path units start before services, and a watch set before the mount is made would never hear of it."""
    page = (ROOT / "docs/how-to/monitoring.md").read_text()
    (text,) = re.findall(r"    # /etc/systemd/system/ktaskfs-changed.path\n((?:    [^\n]*\n)+)", page)
    units, told = machine.root / "etc/systemd/system", machine.root / "disk/told"
    (units / "ktaskfs-changed.path").write_text(textwrap.dedent(text))
    (units / "ktaskfs-changed.service").write_text("[Service]\nType=oneshot\nExecStart=touch /disk/told\n")
    machine.run("systemctl", "stop", UNIT)
    try:
        assert machine.sh("systemd-analyze verify ktaskfs-changed.path") == Outcome(0, "", "")
        assert machine.sh("systemctl enable -q ktaskfs-changed.path") == Outcome(0, "", "")
        for _ in range(2):  # what a boot starts, and what a later start of the service alone does
            machine.start("multi-user.target")
            machine.start(UNIT)
            machine.until_mounted()
            until(lambda: machine.show("ktaskfs-changed.path", "ActiveState") == "active", "the unit watches")
            assert machine.sh(f"echo fallocate path=/dev/shm/new length=4K > {MOUNT}/tasks/control").status == 0
            until(told.exists, "the unit ran")
            assert machine.sh(f"rm /dev/shm/new; systemctl stop {UNIT}").status == 0
            until(lambda: machine.show("ktaskfs-changed.service", "ActiveState") == "inactive", "it has ended")
            told.unlink()
    finally:
        machine.sh("systemctl disable -q ktaskfs-changed.path; systemctl stop ktaskfs-changed.path")
        for name in ("ktaskfs-changed.path", "ktaskfs-changed.service"):
            (units / name).unlink()
        machine.run("systemctl", "daemon-reload")
        machine.start(UNIT)  # as it was before
        machine.until_mounted()
