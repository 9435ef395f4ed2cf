"""Debian's packages, unpacked outside of the system, for their programs; no service of theirs is started."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

CACHE: Final = Path(os.environ.get("KTASKFS_TEST_CACHE", "/var/cache/ktaskfs-test"))
"""The directory of unpacked packages; after its removal they are downloaded again."""
APT: Final = ("-q", "-y", "-o", "DPkg::Lock::Timeout=300")

LISTS_PATIENCE: Final = 300
"""Seconds to wait while another apt-get has the lists."""


class Unavailable(Exception):
    """A requirement of a test is not available here; the message has the reason."""


@contextlib.contextmanager
def cache() -> Iterator[None]:
    """Two runs of the tests do not download at the same time. Raises Unavailable where packages cannot be had."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable("only root of a Debian can download its packages")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"{' '.join(error.cmd)}: {error.stderr or error.stdout}") from error


def unpacked(package: str) -> Path:
    """The directory in the cache with a package's files; of one that is made of another, the other's.

    Call it within ``cache``. Raises CalledProcessError.
    """
    found = sorted(CACHE.glob(f"{package}_*"))
    if found:
        return found[-1]
    try:
        return _download(package)
    except subprocess.CalledProcessError:  # the lists do not have it, or are older than the archive
        apt_get("update")
        return _download(package)


def _download(package: str) -> Path:
    depends = subprocess.run(["apt-cache", "depends", package], capture_output=True, text=True, check=True).stdout
    inner = re.search(r"Depends: (linux-image-[0-9]\S*)", depends)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        directory = Path(name)
        directory.chmod(0o755)  # apt downloads as the user _apt, if that may write there
        _run(
            "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", inner[1] if inner else package, cwd=directory
        )
        archive = next(directory.glob("*.deb"))
        _run("dpkg", "-x", str(archive), str(directory / "files"))
        place = CACHE / f"{package}_{archive.name.split('_')[1]}"
        (directory / "files").rename(place)
    return place


def known(package: str) -> bool:
    """Whether apt's lists have the package."""
    done = subprocess.run(["apt-cache", "show", package], capture_output=True, check=False)
    return done.returncode == 0 and bool(done.stdout)


def apt_get(*arguments: str) -> None:
    """Run apt-get; raises CalledProcessError. apt-get waits for dpkg's lock, and this for the lock of the lists."""
    deadline = time.monotonic() + LISTS_PATIENCE
    while True:
        try:
            return _run("apt-get", *APT, *arguments)
        except subprocess.CalledProcessError as error:
            if "/lists/lock" not in error.stderr or time.monotonic() > deadline:
                raise
        time.sleep(1)


def _run(*command: str, cwd: Path | None = None) -> None:
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True)
