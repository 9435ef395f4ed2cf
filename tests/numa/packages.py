"""What a virtual machine needs, brought here by apt: qemu installed, a kernel and busybox unpacked beside it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

CACHE: Final = Path(os.environ.get("KTASKFS_TEST_CACHE", "/var/cache/ktaskfs-test"))
"""Where packages are unpacked; whoever removes it gets them downloaded again."""
KERNEL: Final = "linux-image-cloud-amd64"
"""Debian's kernel for virtual machines: small, with virtiofs, two NUMA nodes and hugetlbfs."""
BUSYBOX: Final = "busybox-static"
SHARERS: Final = (Path("/usr/lib/qemu/virtiofsd"), Path("/usr/libexec/virtiofsd"))
"""Where Debian 12 and 13 have the program that serves a directory to a machine."""
APT: Final = ("-q", "-y", "-o", "DPkg::Lock::Timeout=300")


class Unavailable(Exception):
    """There can be no virtual machine here; says why."""


@dataclass(frozen=True)
class Parts:
    """What a machine is started from. ``modules`` is the directory of the kernel's modules."""

    qemu: Path
    sharer: Path
    kernel: Path
    modules: Path
    busybox: Path


def install() -> Parts:
    """Everything, downloaded if it is not there yet; raises Unavailable where that cannot be."""
    if os.geteuid() != 0:
        raise Unavailable("only root can give a virtual machine this system's files")
    if os.uname().machine != "x86_64" or shutil.which("apt-get") is None:
        raise Unavailable("the virtual machine is put together from Debian's packages for amd64")
    CACHE.mkdir(parents=True, exist_ok=True)
    with _alone():
        try:
            qemu, sharer = _programs()
            kernel = _unpacked(KERNEL)
            busybox = _unpacked(BUSYBOX)
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"{' '.join(error.cmd)}: {error.stderr or error.stdout}") from error
    return Parts(
        qemu=qemu,
        sharer=sharer,
        kernel=next(kernel.glob("boot/vmlinuz-*")),
        modules=next(path for path in [*kernel.glob("lib/modules/*"), *kernel.glob("usr/lib/modules/*")]),
        busybox=next(path for path in (busybox / "bin/busybox", busybox / "usr/bin/busybox") if path.exists()),
    )


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Two runs of the tests do not download at the same time."""
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _programs() -> tuple[Path, Path]:
    def find() -> tuple[Path, Path] | None:
        qemu = shutil.which("qemu-system-x86_64")
        sharer = next((path for path in SHARERS if path.exists()), None)
        return None if qemu is None or sharer is None else (Path(qemu), sharer)

    found = find()
    if found is None:
        _apt_get("update")
        packages = ["qemu-system-x86"]
        if _known("virtiofsd"):  # a package of its own since Debian 13
            packages.append("virtiofsd")
        _apt_get("install", "--no-install-recommends", *packages)
        found = find()
    if found is None:
        raise Unavailable("Debian's qemu-system-x86 came without qemu-system-x86_64 or virtiofsd")
    return found


def _unpacked(package: str) -> Path:
    """The directory in the cache with a package's files; of one that is made of another, the other's."""
    known = sorted(CACHE.glob(f"{package}_*"))
    if known:
        return known[-1]
    if not _known(package):
        _apt_get("update")
    depends = subprocess.run(["apt-cache", "depends", package], capture_output=True, text=True, check=True).stdout
    inner = re.search(r"Depends: (linux-image-[0-9]\S*)", depends)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        directory = Path(name)
        directory.chmod(0o755)  # apt downloads as a user of its own, _apt, if that may write there
        _run(
            "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", inner[1] if inner else package, cwd=directory
        )
        archive = next(directory.glob("*.deb"))
        _run("dpkg", "-x", str(archive), str(directory / "files"))
        place = CACHE / f"{package}_{archive.name.split('_')[1]}"
        (directory / "files").rename(place)
    return place


def _known(package: str) -> bool:
    done = subprocess.run(["apt-cache", "show", package], capture_output=True, check=False)
    return done.returncode == 0 and bool(done.stdout)


def _apt_get(*arguments: str) -> None:
    _run("apt-get", *APT, *arguments)


def _run(*command: str, cwd: Path | None = None) -> None:
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True)
