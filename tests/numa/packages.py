"""The packages of a virtual machine, from apt: qemu is installed, the others are only unpacked."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.packages import CACHE, Unavailable, apt_get, cache, known, unpacked

KERNEL: Final = "linux-image-cloud-amd64"
"""Debian's kernel for virtual machines: small, with virtiofs, two NUMA nodes and hugetlbfs."""
BUSYBOX: Final = "busybox-static"
APPARMOR: Final = "apparmor"
CHECKPOLICY: Final = "checkpolicy"
"""The compiler of SELinux's policies."""
SHARERS: Final = (Path("/usr/lib/qemu/virtiofsd"), Path("/usr/libexec/virtiofsd"))
"""Where Debian 12 and 13 have the program that serves a directory to a machine."""


@dataclass(frozen=True)
class Parts:
    """The files that start a machine. ``modules`` is the directory of the kernel's modules."""

    qemu: Path
    sharer: Path
    kernel: Path
    modules: Path
    busybox: Path


def install() -> Parts:
    """All packages, downloaded if missing; raises Unavailable."""
    if os.uname().machine != "x86_64":
        raise Unavailable("the virtual machine is put together from Debian's packages for amd64")
    with cache():
        qemu, sharer = _programs()
        kernel = unpacked(KERNEL)
        busybox = unpacked(BUSYBOX)
        unpacked(APPARMOR)
        unpacked(CHECKPOLICY)
    return Parts(
        qemu=qemu,
        sharer=sharer,
        kernel=next(kernel.glob("boot/vmlinuz-*")),
        modules=next(path for path in [*kernel.glob("lib/modules/*"), *kernel.glob("usr/lib/modules/*")]),
        busybox=next(path for path in (busybox / "bin/busybox", busybox / "usr/bin/busybox") if path.exists()),
    )


def apparmor() -> Path:
    """The files of AppArmor's package, once ``install`` has unpacked it."""
    return max(CACHE.glob(f"{APPARMOR}_*"))


def checkpolicy() -> Path:
    """The files of checkpolicy(8)'s package, once ``install`` has unpacked it."""
    return max(CACHE.glob(f"{CHECKPOLICY}_*"))


def _programs() -> tuple[Path, Path]:
    def find() -> tuple[Path, Path] | None:
        qemu = shutil.which("qemu-system-x86_64")
        sharer = next((path for path in SHARERS if path.exists()), None)
        return None if qemu is None or sharer is None else (Path(qemu), sharer)

    found = find()
    if found is None:
        apt_get("update")
        packages = ["qemu-system-x86"]
        if known("virtiofsd"):  # a separate package since Debian 13
            packages.append("virtiofsd")
        apt_get("install", "--no-install-recommends", *packages)
        found = find()
    if found is None:
        raise Unavailable("Debian's qemu-system-x86 came without qemu-system-x86_64 or virtiofsd")
    return found
