"""The hook of libvirt, called by a real libvirtd in a separate mount namespace."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from tests.support.daemon import ROOT
from tests.support.hugepages import reserved, smallest_pages
from tests.support.poll import until
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Mount
    from tests.support.hugepages import TestPool

MEMORY: Final = 64 << 20
PREPARE: Final = """
set -eu
cd "$1"
{ cat /etc/passwd; echo libvirt-qemu:x:4000000001:4000000001::/:/bin/false; } > passwd
{ cat /etc/group; echo libvirt-qemu:x:4000000001:; echo kvm:x:4000000002:; } > group
mount --bind passwd /etc/passwd
mount --bind group /etc/group
for directory in /etc/libvirt /run/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt; do
    mount -t tmpfs none $directory
done
mkdir -p /etc/libvirt/hooks
cp libvirtd.conf qemu.conf /etc/libvirt
install -m 755 hook /etc/libvirt/hooks/qemu
: > ready
libvirtd --pid-file /run/libvirt/pid & wait $!
"""
"""A shell that runs libvirtd with separate directories, and reaps the guests, which libvirtd orphans."""
CONFIGURATION: Final = """
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
hugetlbfs_mount = "{}"
"""
DOMAIN: Final = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='b'>{memory}</memory>
  <memoryBacking>{backing}</memoryBacking>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
</domain>
"""
HUGE: Final = "<hugepages/>"


@dataclass(frozen=True)
class Libvirt:
    """A libvirtd."""

    area: Path
    process: subprocess.Popen[bytes]

    def virsh(self, *words: str) -> Outcome:
        return run("nsenter", f"--mount={self._init}/ns/mnt", "virsh", "-q", *words)

    @property
    def _init(self) -> Path:
        """The /proc directory of the first process of its PID namespace."""
        (init,) = psutil.Process(self.process.pid).children()
        return Path(f"/proc/{init.pid}")

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.area / "log").read_text()
        return (self.area / "ready").exists() and self.virsh("list").status == 0

    def create(self, name: str, *, memory: int = MEMORY, backing: str = HUGE) -> Outcome:
        """Start a domain that does nothing yet."""
        file = self.area / f"{name}.xml"
        file.write_text(DOMAIN.format(name=name, memory=memory, backing=backing))
        return self.virsh("create", "--paused", str(file))

    @property
    def remembered(self) -> list[str]:
        """The domains of which the hook remembers pages."""
        directory = self._init / "root/run/libvirt/ktaskfs"
        return os.listdir(directory) if directory.exists() else []


@pytest.fixture
def libvirt(mounted: Mount, hugetlbfs: Path, area: Path) -> Iterator[Libvirt]:
    (area / "libvirtd.conf").write_text('auth_unix_rw = "none"\n')
    (area / "qemu.conf").write_text(CONFIGURATION.format(hugetlbfs))
    command = f"PATH={Path(sys.executable).parent}:$PATH KTASKFS='{mounted.path}'"
    hook = f'#!/bin/sh\n{command} exec {sys.executable} {ROOT}/packaging/libvirt_hook.py "$@"\n'
    (area / "hook").write_text(hook)
    command_line = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command_line += ["bash", "-c", PREPARE, "bash", str(area)]
    directories = [Path(f"/{each}/libvirt") for each in ("etc", "run", "var/lib", "var/log", "var/cache")]
    made = [each for each in directories if not each.exists()]
    for each in made:
        each.mkdir()
    with (area / "log").open("wb") as log, subprocess.Popen(command_line, stdout=log, stderr=log) as process:
        found = Libvirt(area, process)
        try:
            until(found.answers, "libvirtd answers")
            yield found
        finally:
            for name in found.virsh("list", "--name").out.split():
                found.virsh("destroy", name)
            process.kill()  # and with it all in its PID namespace
    for each in made:
        with contextlib.suppress(OSError):
            each.rmdir()


@smallest_pages
def test_pages_come_with_a_domain_and_go_with_it(libvirt: Libvirt, page_size: int, hugetlbfs: Path) -> None:
    pages = MEMORY // page_size

    def numbers(pool: TestPool) -> tuple[int, int]:
        return pool.total - total, pool.free - free

    with reserved(page_size, 0) as pool:
        total, free = pool.total, pool.available
        spare = min(pages, free)
        assert libvirt.create("first") == Outcome(0, "", "")
        assert numbers(pool) == (pages - spare, -spare)
        assert libvirt.create("second", memory=MEMORY // 2).status == 0
        grown = [pages > free, pages // 2 > max(0, free - pages)]  # the pool may have had room for them
        assert len(libvirt.remembered) == sum(grown)
        assert libvirt.create("without", backing="").status == 0
        assert numbers(pool)[0] == pages + pages // 2 - min(pages + pages // 2, free)
        assert libvirt.virsh("destroy", "first").status == 0
        assert libvirt.virsh("destroy", "without").status == 0
        assert libvirt.virsh("destroy", "second").status == 0
        until(lambda: numbers(pool) == (0, 0), "the pool is what it was")
        assert libvirt.remembered == []


@smallest_pages
def test_a_domain_that_is_too_large_does_not_start(libvirt: Libvirt, page_size: int, hugetlbfs: Path) -> None:
    with reserved(page_size, 0) as pool:
        total = pool.total
        outcome = libvirt.create("large", memory=1 << 50)
        assert outcome.status == 1
        assert "the pool needs 1.0PiB more" in outcome.err
        assert pool.total == total
        assert libvirt.remembered == []


@smallest_pages
def test_pages_by_cell_of_the_domain(libvirt: Libvirt, page_size: int, hugetlbfs: Path) -> None:
    """Of two cells one has huge pages, on a node that is named."""
    name = f"<hugepages><page size='{page_size}' unit='b' nodeset='1'/></hugepages>"
    domain = DOMAIN.replace(
        "  <os>",
        "  <vcpu>2</vcpu>\n  <numatune><memnode cellid='1' mode='strict' nodeset='0'/></numatune>\n"
        "  <cpu><numa><cell id='0' cpus='0' memory='32' unit='MiB'/><cell id='1' cpus='1' memory='32' unit='MiB'/>"
        "</numa></cpu>\n  <os>",
    )
    file = libvirt.area / "cells.xml"
    file.write_text(domain.format(name="cells", memory=MEMORY, backing=name))
    with reserved(page_size, 0) as pool:
        total, free = pool.total, pool.available
        pages = MEMORY // 2 // page_size
        outcome = libvirt.virsh("create", "--paused", str(file))
        assert outcome.status == 0, outcome.err
        assert pool.total - total == pages - min(pages, free)
        assert libvirt.virsh("destroy", "cells").status == 0
        until(lambda: pool.total == total, "the pool is what it was")


@smallest_pages
def test_pages_of_a_size_that_the_machine_lacks(libvirt: Libvirt, page_size: int) -> None:
    backing = "<hugepages><page size='3' unit='MiB'/></hugepages>"
    outcome = libvirt.create("odd", backing=backing)
    assert outcome.status == 1
    assert "status 1: ktaskfs: /sys/kernel/mm/hugepages/hugepages-3072kB/" in outcome.err
