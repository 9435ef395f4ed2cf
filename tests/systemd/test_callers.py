"""Callers that systemd runs: the main job from scopes and services with settings of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.support.hugepages import reserved
from tests.support.shell import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.machine import Machine

UNIT: Final = "ktaskfs.service"
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
        assert machine.sh(f"systemctl start {UNIT} && {mount}").status == 0
        yield machine
        assert machine.run("umount", "/dev/hugepages").status == 0


@pytest.mark.parametrize("user", ["root", "ann"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_main_job(service: Machine, settings: str, user: str) -> None:
    as_user = ["runuser", "-u", user, "--"]  # of a scope, --uid= keeps root's groups
    command = ["systemd-run", "--quiet", *SETTINGS[settings], *as_user, "bash", "-c", JOB]
    assert service.run(*command) == Outcome(0, f"done\n{user} {PAGES * HUGE // 512}\n", "")
