"""Pools that last: what ``ktaskfs pool save`` writes, systemd-tmpfiles does at boot, and at no other time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.hugepages import reserved, resize

if TYPE_CHECKING:
    from tests.systemd.machine import Machine

SIZE = 2 << 20
CREATE = ("systemd-tmpfiles", "--create")
SAVED = "ktaskfs-pools.conf"


def test_the_next_boot_has_the_pools_of_today(machine: Machine) -> None:
    with reserved(SIZE, 4) as pool:
        total = pool.total
        assert "hugepages-2048kB/nr_hugepages" in machine.out("ktaskfs", "pool", "save")
        try:
            resize(SIZE, -3)
            machine.out(*CREATE, SAVED)
            assert pool.total == total - 3
            machine.out(*CREATE, "--boot", SAVED)
            assert pool.total == total
        finally:
            machine.out("rm", f"/etc/tmpfiles.d/{SAVED}")
