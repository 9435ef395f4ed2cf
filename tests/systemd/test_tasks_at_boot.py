"""The specs of /etc/ktaskfs.d, carried out by ktaskfs-boot.service before the services that need the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.support.hugepages import TestPool, reserved
from tests.systemd.machine import SETUP, booted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.machine import Machine

UNIT: Final = "ktaskfs-boot.service"
SIZE: Final = 2 << 20
PAGES: Final = 4
MORE: Final = """
echo 'none /dev/hugepages hugetlbfs pagesize=2M 0 0' >>/etc/fstab
mkdir /etc/ktaskfs.d
echo 'fallocate path=/dev/hugepages/vm0 length={length} name=vm0' >/etc/ktaskfs.d/20-guests.tasks
printf '# Pools first.\\nreserve pages={pages} size=2M name=pool\\n' >/etc/ktaskfs.d/10-pools.tasks
for unit in libvirtd.service postgresql@.service; do
    cat >/etc/systemd/system/$unit <<END
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'stat --format="%%b" /dev/hugepages/vm0 >/run/%N.saw'
[Install]
WantedBy=multi-user.target
END
done
systemctl --quiet enable ktaskfs-boot.service libvirtd.service postgresql@15-main.service
"""
"""The services are not the real ones: they have the names, and note how much of the memory they find."""


@pytest.fixture(scope="module")
def pool(root: None) -> Iterator[TestPool]:
    """The machine's pool, as the tests find it; no other test changes it meanwhile."""
    with reserved(SIZE, 0) as pool:
        yield pool


@pytest.fixture(scope="module")
def started(pool: TestPool) -> Iterator[Machine]:
    """A machine that has booted with tasks."""
    more = MORE.format(pages=pool.total + PAGES, length=PAGES * SIZE)
    with booted(SETUP + more) as machine:
        yield machine
        assert machine.run("rm", "/dev/hugepages/vm0").status == 0


def test_the_memory_is_there_before_the_services_that_need_it(started: Machine) -> None:
    assert started.show(UNIT, "ActiveState") == "active", started.run("journalctl", "--unit", UNIT)
    assert started.out("cat", "/run/libvirtd.saw") == f"{PAGES * SIZE // 512}\n"
    assert started.out("cat", "/run/postgresql@15-main.saw") == f"{PAGES * SIZE // 512}\n"
    started.until_logged("vm0: done", "--unit", UNIT)
    journal = started.out("journalctl", "--output=cat", "--unit", UNIT)
    assert journal.index("pool: done") < journal.index("vm0: done")


def test_a_daemon_that_is_started_anew_does_not_start_them_again(started: Machine) -> None:
    before = started.show(UNIT, "InvocationID")
    assert started.run("systemctl", "restart", "ktaskfs.service").status == 0
    started.until_mounted()
    assert started.show(UNIT, "InvocationID") == before
    assert started.out("cat", "/run/ktaskfs/tasks/vm0/state") == "done\n"


def test_a_task_that_fails_fails_the_unit_with_words(started: Machine) -> None:
    """Other files still run, and a failure does not keep other services from starting."""
    wrong = started.root / "etc/ktaskfs.d/15-wrong.tasks"
    wrong.write_text("\nfallocate path=/dev/hugepages/vm1 length=1P name=vm1\nfree path=/dev/hugepages/vm0 length=2M\n")
    try:
        assert started.run("systemctl", "restart", UNIT, "libvirtd.service").status != 0
        assert started.show(UNIT, "Result") == "exit-code"
        assert started.show("libvirtd.service", "ActiveState") == "active"
        invocation = started.show(UNIT, "InvocationID")
        for words in ("ktaskfs: /etc/ktaskfs.d/15-wrong.tasks:2: ", "vm0: done"):
            started.until_logged(words, "--output=cat", f"_SYSTEMD_INVOCATION_ID={invocation}")
        assert started.out("cat", "/run/libvirtd.saw") == f"{PAGES * SIZE // 512}\n"
    finally:
        wrong.unlink()
    assert started.run("systemctl", "restart", UNIT).status == 0


def test_without_files_there_is_nothing_to_do(started: Machine) -> None:
    assert started.sh("mv /etc/ktaskfs.d /etc/ktaskfs.off").status == 0
    assert started.run("systemctl", "restart", UNIT).status == 0
    assert started.show(UNIT, "ConditionResult") == "no"
    assert started.sh("mv /etc/ktaskfs.off /etc/ktaskfs.d").status == 0


def test_without_a_mount_it_says_what_to_do(started: Machine) -> None:
    assert started.run("systemctl", "stop", "ktaskfs.service").status == 0
    assert started.run("systemctl", "restart", UNIT).status != 0
    invocation = started.show(UNIT, "InvocationID")
    words = "no ktaskfs is mounted on /run/ktaskfs: systemctl start ktaskfs"
    started.until_logged(words, "--output=cat", f"_SYSTEMD_INVOCATION_ID={invocation}")
