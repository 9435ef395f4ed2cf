"""Containers of podman. Their programs are this machine's /usr: no image is needed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import filesystems
from tests.support.hugepages import TestPool, reserved
from tests.support.shell import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MountMaker
    from tests.support.daemon import Mount

HUGE = 2 << 20
INSIDE = "/kt"
"""Where containers have the directory ``area``."""


@dataclass(frozen=True)
class Podman:
    """Runs containers that have ``area`` at INSIDE."""

    area: Path
    storage: Path
    """Where podman has its own: outside of ``area``, since runc makes the mount of a root directory private."""

    def command(self, *options: str, owner: int = 0, propagation: str = "rslave") -> list[str]:
        """The command that runs a container; the command inside follows.

        The container's root directory belongs to user ``owner``. ``propagation``: with ``rshared``, the host sees
        mounts made inside (Bidirectional of Kubernetes); with ``rslave``, only the container sees mounts of the host
        (HostToContainer).
        """
        places = [f"--{each}={self.storage / each}" for each in ("root", "runroot", "tmpdir")]
        # In a container there may be no systemd that makes control groups, and no right to raise limits. podman 5 warns
        # of control groups of version 1 at each start.
        machine = ["--log-level=error", "--runtime=runc", "--cgroup-manager=cgroupfs", *places]
        limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--network=none"]
        view = [f"--volume={self.area}:{INSIDE}:{propagation}", "--volume=/usr:/usr:ro"]
        return ["podman", *machine, "run", "--rm", *limits, *options, *view, "--rootfs", str(self._root_of(owner))]

    def _root_of(self, owner: int) -> Path:
        """A root directory in which ``owner`` may make what podman mounts there."""
        root = self.storage / f"root{owner}"
        if not root.exists():
            root.mkdir()
            for name in ("usr", "etc", "tmp", "dev", "proc", "sys", "run"):
                (root / name).mkdir()
                os.chown(root / name, owner, owner)
            for name in ("bin", "sbin", "lib", "lib64"):
                (root / name).symlink_to(f"usr/{name}")
            os.chown(root, owner, owner)
        return root

    def sh(self, script: str, *options: str, owner: int = 0) -> Outcome:
        """Run a script of bash in a container."""
        return run(*self.command(*options, owner=owner), "bash", "-c", script)


@pytest.fixture
def podman(root: None, area: Path) -> Iterator[Podman]:
    """``area`` is a shared mount: containers see later mounts in it, too."""
    missing = [name for name in ("podman", "runc") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="kt-podman-") as storage:
        Path(storage).chmod(0o755)
        with contextlib.ExitStack() as mounts:
            for path, propagation in ((storage, "private"), (str(area), "shared")):
                subprocess.run(["mount", "--bind", path, path], check=True)
                mounts.callback(subprocess.run, ["umount", "--recursive", path], check=True)
                subprocess.run(["mount", f"--make-{propagation}", path], check=True)
            yield Podman(area, Path(storage))


@pytest.fixture
def huge(root: None, area: Path) -> Iterator[tuple[Path, TestPool]]:
    """A hugetlbfs open to all, and its pool."""
    with reserved(HUGE, 40) as pool, filesystems.hugetlbfs(area / "huge", HUGE) as path:
        yield path, pool


@pytest.fixture
def shared_mount(podman: Podman, mount_maker: MountMaker) -> Mount:
    """A ktaskfs below ``area`` that all users may write to."""
    return mount_maker("mode=0666")
