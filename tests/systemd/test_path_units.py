"""Path units of systemd on files of the mount."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import ROOT
from tests.support.poll import until
from tests.support.shell import Outcome
from tests.systemd.machine import SLOWLY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.machine import Machine

UNIT = "ktaskfs.service"
MOUNT = "/run/ktaskfs"
START = f"fallocate path=/dev/shm/watched length=64M {SLOWLY} name=watched"


@pytest.fixture
def service(machine: Machine) -> Iterator[Machine]:
    """The machine with the service and a task at work."""
    machine.start(UNIT)
    machine.until_mounted()
    assert machine.sh(f"echo '{START}' > {MOUNT}/tasks/control").status == 0
    toucher = "pgrep --full '^ktaskfs: toucher'"
    change = f"mkdir {MOUNT}/tasks/new && rmdir {MOUNT}/tasks/new"  # ten seconds after the last one it ends
    until(lambda: machine.sh(f"{change} && {toucher}").status == 0, "watchers are told")
    until(lambda: machine.sh(toucher).status == 1, "watchers of earlier changes were told")
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


def test_the_unit_of_the_page_hears_of_changes_after_each_start_of_the_service(machine: Machine) -> None:
    page = (ROOT / "docs/how-to/monitoring.md").read_text()
    units, told = machine.root / "etc/systemd/system", machine.root / "disk/told"
    files = dict(re.findall(r"    # /etc/systemd/system/(\S*changed\S*)\n((?:    [^\n]+\n)+)", page))
    assert set(files) == {"ktaskfs-changed.path", "ktaskfs.service.d/changed.conf"}
    files["ktaskfs-changed.service"] = "[Service]\nType=oneshot\nExecStart=touch /disk/told\n"
    for name, text in files.items():
        (units / name).parent.mkdir(exist_ok=True)
        (units / name).write_text(textwrap.dedent(text))
    try:
        assert machine.sh("systemctl daemon-reload; systemd-analyze verify ktaskfs-changed.path") == Outcome(0, "", "")
        for verb in ("stop", "stop", "restart"):
            machine.run("systemctl", verb, UNIT)
            machine.start(UNIT)
            machine.until_mounted()
            until(lambda: machine.show("ktaskfs-changed.path", "ActiveState") == "active", "the unit watches")
            spec = "fallocate path=/dev/shm/new length=4K name=new replace=1"
            assert machine.sh(f"echo {spec} > {MOUNT}/tasks/control && tail -n 1 {MOUNT}/tasks/new/wait").status == 0
            until(told.exists, "the unit ran")
            until(lambda: machine.show("ktaskfs-changed.service", "ActiveState") == "inactive", "it has ended")
            told.unlink()
    finally:
        machine.run("systemctl", "stop", "ktaskfs-changed.path")
        for name in files:
            (units / name).unlink()
        (units / "ktaskfs.service.d").rmdir()
        machine.sh(f"systemctl daemon-reload; rmdir {MOUNT}/tasks/new; rm -f /dev/shm/new /disk/told")
